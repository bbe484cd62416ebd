"""The router: answers on this device, and knows when to ask elsewhere, and whether it may."""
