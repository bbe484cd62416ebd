"""Which requests are answered on this device, and what may leave it for those that are not."""
