"""The local HTTP server: OpenAI's protocol over a ChatModel."""
