"""The Centrifuge client protocol (bidirectional) in JSON and in Protobuf."""
