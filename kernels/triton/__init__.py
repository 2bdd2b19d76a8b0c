"""The GPU kernels, in Triton. Imported when first needed: Triton may be absent."""
