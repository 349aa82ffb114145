"""The forms that one exported graph takes in OpenVINO, and which of them suits a processor."""
