"""The endpoint of the Centrifuge protocol, `/connection/websocket`, and its clients."""
