"""What accelerators can do at best, by the name JAX gives them (`device.device_kind`).

Per JAX device, dense (no structured sparsity). Sources, all of the vendors:

* TPU: Google Cloud's system architecture pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e", "TPU7x (Ironwood)". A TPU7x
  chip is two JAX devices, so its figures are halved. A v4 chip is taken as one device (megacore, as on Cloud VMs).
  Google gives no float32 peak: the matrix units multiply bfloat16.
* GPU: NVIDIA's data sheets "A100 Tensor Core GPU", "H100 Tensor Core GPU", "H200 Tensor Core GPU" and "DGX B200" and
  "HGX B200" (an eighth of the system). Where a sheet gives bfloat16 with sparsity, half of it. float32 is that of the
  plain units, without TF32.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    bf16_flops: float  # a second
    fp32_flops: float | None  # a second; None where the vendor gives none
    memory_bytes: float
    memory_bytes_per_second: float


GiB = 2**30
_V5E = Peak(bf16_flops=197e12, fp32_flops=None, memory_bytes=16 * GiB, memory_bytes_per_second=819e9)
_V5P = Peak(bf16_flops=459e12, fp32_flops=None, memory_bytes=95 * GiB, memory_bytes_per_second=2765e9)
_V6E = Peak(bf16_flops=918e12, fp32_flops=None, memory_bytes=32 * GiB, memory_bytes_per_second=1638e9)
_A100_40 = Peak(bf16_flops=312e12, fp32_flops=19.5e12, memory_bytes=40e9, memory_bytes_per_second=1555e9)

PEAKS = {
    "TPU v4": Peak(bf16_flops=275e12, fp32_flops=None, memory_bytes=32 * GiB, memory_bytes_per_second=1228e9),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": Peak(
        bf16_flops=2307e12 / 2, fp32_flops=None, memory_bytes=192 * GiB / 2, memory_bytes_per_second=7380e9 / 2
    ),
    "NVIDIA A100-SXM4-40GB": _A100_40,
    "NVIDIA A100-PCIE-40GB": _A100_40,
    "NVIDIA A100-SXM4-80GB": Peak(
        bf16_flops=312e12, fp32_flops=19.5e12, memory_bytes=80e9, memory_bytes_per_second=2039e9
    ),
    "NVIDIA A100 80GB PCIe": Peak(
        bf16_flops=312e12, fp32_flops=19.5e12, memory_bytes=80e9, memory_bytes_per_second=1935e9
    ),
    "NVIDIA H100 80GB HBM3": Peak(
        bf16_flops=989.5e12, fp32_flops=67e12, memory_bytes=80e9, memory_bytes_per_second=3350e9
    ),
    "NVIDIA H100 PCIe": Peak(bf16_flops=756e12, fp32_flops=51e12, memory_bytes=80e9, memory_bytes_per_second=2000e9),
    "NVIDIA H200": Peak(bf16_flops=989.5e12, fp32_flops=67e12, memory_bytes=141e9, memory_bytes_per_second=4800e9),
    "NVIDIA B200": Peak(bf16_flops=2250e12, fp32_flops=75e12, memory_bytes=180e9, memory_bytes_per_second=8000e9),
}


def peak_flops(device_kind: str) -> float | None:
    """Return the dense bfloat16 operations a second of a device, the denominator of MFU; None where it is not known."""
    peak = PEAKS.get(device_kind)
    return peak and peak.bf16_flops
