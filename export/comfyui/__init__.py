"""One .safetensors of a quantized network under the names and in the layouts that ComfyUI's loader reads."""
