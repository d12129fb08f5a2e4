"""The dense bfloat16 operations a second of accelerators, by the name JAX gives them (`device.device_kind`).

Per JAX device, without structured sparsity: where a vendor gives the figure with sparsity, half of it. Sources:

* TPU: Google Cloud's system architecture pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e", "TPU7x (Ironwood)". A TPU7x
  chip is two JAX devices, so its figure is halved. A v4 chip is taken as one device (megacore, as on Cloud VMs).
* GPU: NVIDIA's data sheets "A100 Tensor Core GPU", "H100 Tensor Core GPU", "H200 Tensor Core GPU" and "DGX B200" and
  "HGX B200" (an eighth of the system).

Runs in float32 are compared with the same figure. At JAX's default precision their matrix products are in bfloat16 on
TPU and in TF32 on GPU, so they may exceed the figure of the plain float32 units.
"""

PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989.5e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Return the denominator of MFU for a device, or None if it is not known."""
    return PEAKS.get(device_kind)
