//! Client architecture codes (DHCP option 93, RFC 4578 §2.1 and IANA "Processor Architecture Types").

use serde::{Deserialize, Serialize};

/// A client architecture code as it stands in option 93. Unknown codes are values, so they can be logged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Arch(pub u16);

/// The processor a boot program must be built for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cpu {
    /// 32-bit x86. A BIOS machine is this until iPXE's `cpuid` says more.
    X86,
    /// 64-bit x86.
    X64,
    /// 32-bit ARM.
    Arm32,
    /// 64-bit ARM.
    Arm64,
    /// Anything bootstorm has no loader table for.
    Other,
}

/// The firmware family a boot program must be built for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// PC BIOS (`pcbios` in iPXE's words).
    Bios,
    /// UEFI (`efi` in iPXE's words).
    Efi,
    /// U-Boot, Open Firmware, rpiboot and the rest.
    Other,
}

/// A group of machines that boot the same programs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Family {
    /// PC BIOS.
    #[serde(rename = "bios")]
    Bios,
    /// UEFI on x64.
    #[serde(rename = "uefi-x64")]
    UefiX64,
    /// UEFI on 32-bit x86.
    #[serde(rename = "uefi-ia32")]
    UefiIa32,
    /// UEFI on ARM64.
    #[serde(rename = "uefi-arm64")]
    UefiArm64,
}

impl Family {
    /// All of them, the common ones first.
    pub const ALL: [Self; 4] = [Self::Bios, Self::UefiX64, Self::UefiIa32, Self::UefiArm64];

    /// The family of an option 93 code; `None` for machines nobody has programs for.
    pub fn of(arch: Arch) -> Option<Self> {
        Self::on(arch.platform(), arch.cpu())
    }

    /// The family of a firmware and a processor.
    pub fn on(platform: Platform, cpu: Cpu) -> Option<Self> {
        match (platform, cpu) {
            (Platform::Bios, _) => Some(Self::Bios),
            (Platform::Efi, Cpu::X64) => Some(Self::UefiX64),
            (Platform::Efi, Cpu::X86) => Some(Self::UefiIa32),
            (Platform::Efi, Cpu::Arm64) => Some(Self::UefiArm64),
            _ => None,
        }
    }

    /// Its firmware.
    pub fn platform(self) -> Platform {
        if self == Self::Bios { Platform::Bios } else { Platform::Efi }
    }

    /// The processor its EFI programs are built for; `None` for BIOS, whose programs have no such mark.
    pub fn cpu(self) -> Option<Cpu> {
        match self {
            Self::Bios => None,
            Self::UefiX64 => Some(Cpu::X64),
            Self::UefiIa32 => Some(Cpu::X86),
            Self::UefiArm64 => Some(Cpu::Arm64),
        }
    }

    /// The word of lists and JSON, the one `--arch` takes.
    pub fn word(self) -> &'static str {
        match self {
            Self::Bios => "bios",
            Self::UefiX64 => "uefi-x64",
            Self::UefiIa32 => "uefi-ia32",
            Self::UefiArm64 => "uefi-arm64",
        }
    }
}

impl Arch {
    /// x86 BIOS.
    pub const BIOS: Self = Self(0);
    /// IA32 UEFI.
    pub const UEFI_IA32: Self = Self(6);
    /// x64 UEFI.
    pub const UEFI_X64: Self = Self(7);
    /// EFI byte code; many old x64 firmwares send it (RFC 4578's table swapped 7 and 9): treated as x64.
    pub const UEFI_EBC: Self = Self(9);
    /// ARM 64 UEFI.
    pub const UEFI_ARM64: Self = Self(0x0b);
    /// IA32 UEFI HTTP Boot.
    pub const HTTP_IA32: Self = Self(0x0f);
    /// x64 UEFI HTTP Boot.
    pub const HTTP_X64: Self = Self(0x10);
    /// ARM 64 UEFI HTTP Boot.
    pub const HTTP_ARM64: Self = Self(0x13);

    /// The processor this code names.
    pub fn cpu(self) -> Cpu {
        match self.0 {
            0 | 6 | 0x0f | 0x14 => Cpu::X86,
            7 | 9 | 0x10 | 0x11 => Cpu::X64,
            0x0a | 0x12 | 0x15 | 0x17 => Cpu::Arm32,
            0x0b | 0x13 | 0x16 | 0x18 | 0x29 => Cpu::Arm64,
            _ => Cpu::Other,
        }
    }

    /// The firmware family this code names.
    pub fn platform(self) -> Platform {
        match self.0 {
            0 | 0x14 => Platform::Bios,
            2 | 6..=0x0b | 0x0f..=0x13 | 0x19..=0x1e | 0x21..=0x28 => Platform::Efi,
            _ => Platform::Other,
        }
    }

    /// True when the firmware fetches its first program by HTTP (UEFI HTTP Boot and its relatives).
    pub fn is_http(self) -> bool {
        matches!(self.0, 0x0f..=0x14 | 0x17 | 0x18 | 0x1a | 0x1c | 0x1e | 0x26 | 0x28)
    }

    /// A short word for lists and logs.
    pub fn word(self) -> &'static str {
        match (self.platform(), self.cpu(), self.is_http()) {
            (Platform::Bios, _, false) => "bios",
            (Platform::Bios, _, true) => "bios-http",
            (Platform::Efi, Cpu::X86, false) => "uefi-ia32",
            (Platform::Efi, Cpu::X64, false) => "uefi-x64",
            (Platform::Efi, Cpu::Arm32, false) => "uefi-arm32",
            (Platform::Efi, Cpu::Arm64, false) => "uefi-arm64",
            (Platform::Efi, Cpu::X86, true) => "uefi-ia32-http",
            (Platform::Efi, Cpu::X64, true) => "uefi-x64-http",
            (Platform::Efi, Cpu::Arm32, true) => "uefi-arm32-http",
            (Platform::Efi, Cpu::Arm64, true) => "uefi-arm64-http",
            _ => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_x64_firmware_that_sends_nine_is_x64() {
        assert_eq!(Arch::UEFI_EBC.cpu(), Cpu::X64);
        assert_eq!(Arch::UEFI_EBC.platform(), Platform::Efi);
    }

    #[test]
    fn http_boot_codes_are_told_apart_from_pxe_codes() {
        assert!(Arch::HTTP_X64.is_http() && !Arch::UEFI_X64.is_http());
        assert_eq!(Arch::HTTP_X64.cpu(), Arch::UEFI_X64.cpu());
        assert_eq!(Arch(0x1b).cpu(), Cpu::Other);
    }
}
