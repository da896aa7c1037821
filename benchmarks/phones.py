"""What the release published of phones, beside what their memory allows; docs/devices.md shows it.

Speeds are of OpenBMB/MiniCPM's README at commit 1ca9c6b5 (February 2024), as are names, systems and memory. What a
SoC's memory carries at most is transfers a second times its width: 64 bits, but for the Snapdragon 778G's 32.
"""

from __future__ import annotations

from dataclasses import dataclass

# A step reads all weights once: llama.cpp's Q4_1 as LLMFarm ran it, MLC's q4f16_1 of today on Android.
Q4_1_BYTES, Q4F16_1_BYTES = 1.70e9, 1.533e9


@dataclass(frozen=True)
class Phone:
    name: str
    system: str
    memory: str  # GB
    soc: str
    transfers_per_s: float
    tokens_per_s: float
    bits: int = 64

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.transfers_per_s * self.bits / 8

    @property
    def ceiling(self) -> float:
        """Tokens a second at which its memory would do nothing but read weights."""
        return self.bandwidth / (Q4_1_BYTES if self.system.startswith("iOS") else Q4F16_1_BYTES)

    def row(self) -> dict[str, object]:
        return {
            "phone": self.name,
            "system": self.system,
            "memory (GB)": self.memory,
            "SoC": self.soc,
            "its memory (GB/s)": f"{self.bandwidth / 1e9:.1f}",
            "at most (tokens/s)": f"{self.ceiling:.1f}",
            "published (tokens/s)": f"{self.tokens_per_s:.1f}",
            "of the most": f"{100 * self.tokens_per_s / self.ceiling:.0f} %",
        }


PHONES = (
    Phone("OPPO Find N3", "Android 13", "12", "Snapdragon 8 Gen 2", 8.4e9, 6.5),
    Phone("Samsung S23 Ultra", "Android 14", "12", "Snapdragon 8 Gen 2", 8.4e9, 6.4),
    Phone("Meizu M182Q", "Android 11", "8", "Snapdragon 888 Plus", 6.4e9, 3.7),
    Phone("Xiaomi 12 Pro", "Android 13", "8 + 3", "Snapdragon 8 Gen 1", 6.4e9, 3.7),
    Phone("Xiaomi Redmi K40", "Android 11", "8", "Snapdragon 870", 5.5e9, 3.5),
    Phone("Oneplus LE 2100", "Android 13", "12", "Snapdragon 870", 5.5e9, 3.5),
    Phone("Oneplus HD1900", "Android 11", "8", "Snapdragon 865", 4.266e9, 3.2),
    Phone("Oneplus HD1900 (two)", "Android 11", "8", "Snapdragon 855", 4.266e9, 3.0),
    Phone("Oneplus HD1905", "Android 10", "8", "Snapdragon 855", 4.266e9, 3.0),
    Phone("Xiaomi MI 8", "Android 9", "6", "Snapdragon 845", 3.733e9, 2.3),
    Phone("Huawei Nova 11SE", "HarmonyOS 4.0.0", "12", "Snapdragon 778", 6.4e9, 1.9, 32),
    Phone("Xiaomi MIX 2", "Android 9", "6", "Snapdragon 835", 3.733e9, 1.3),
    Phone("iPhone 15 Pro", "iOS 17.2.1", "8", "A17 Pro", 6.4e9, 18.0),
    Phone("iPhone 15", "iOS 17.2.1", "6", "A16", 6.4e9, 15.0),
    Phone("iPhone 12 Pro", "iOS 16.5.1", "6", "A14", 4.266e9, 5.8),
    Phone("iPhone 12", "iOS 17.2.1", "4", "A14", 4.266e9, 5.8),
    Phone("iPhone 11", "iOS 16.6", "4", "A13", 4.266e9, 4.6),
)
