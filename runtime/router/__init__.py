"""Who answers a request, this device or another one, and what may leave the device."""
