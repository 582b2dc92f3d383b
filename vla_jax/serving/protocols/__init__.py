"""How robots talk to the server: openpi's websocket, JSON over HTTP, gRPC."""
