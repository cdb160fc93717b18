//! The question DHCP asks the job table: what does this machine boot?

use std::fmt;
use std::net::Ipv4Addr;

use crate::jobs::Identity;
use crate::proto::firmware::Firmware;
use crate::wire::MacAddr;
use crate::wire::dhcp::FILE_LEN_MAX;

/// Decides what a machine that asks by DHCP is told to boot. Implemented over the job table.
pub trait BootPolicy {
    /// Writes the boot file for this machine (a TFTP name for a PXE ROM, a URL for HTTP Boot, a script URL for iPXE)
    /// and says whether there is one. `server` is the address this client reaches us at; URLs are built from it.
    ///
    /// Called once per request that could get boot data; must not change anything, since one boot asks many times.
    fn resolve(
        &mut self,
        who: &Identity,
        firmware: &Firmware,
        server: Ipv4Addr,
        wish: &Wish<'_>,
        file: &mut BootFile,
    ) -> Answer;

    /// True for a machine that is not to be answered in any mode, whatever it asks.
    fn is_excluded(&mut self, mac: MacAddr) -> bool {
        let _ = mac;
        false
    }

    /// True for a machine that is to hear nothing although it is not booting, because no job is meant for it.
    fn is_silent(&mut self, who: &Identity) -> bool {
        let _ = who;
        false
    }

    /// True for a machine an operator has entered. The last fifth of every pool is kept for those.
    fn is_registered(&mut self, who: &Identity) -> bool {
        let _ = who;
        false
    }
}

/// Which loader PXE firmware should get, where there is a choice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wish<'a> {
    /// How many of the family's loaders to pass over: those that did not bring the machine to its script. Counted
    /// round.
    pub pass_over: u8,
    /// The subnet's own loader, if it has one.
    pub loader: Option<&'a str>,
}

/// What a machine gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Nothing at all, not even an address.
    Silent,
    /// No boot data; in full mode an address.
    NoBoot,
    /// Boot data, because the policy for machines without a job says so (a menu). When another PXE server was heard,
    /// such a machine is left to it for one retry.
    BootUnclaimed,
    /// Boot data.
    Boot,
}

/// A boot file name or URL: text of at most 127 bytes, the most that both `file` and option 67 hold.
///
/// Written with `write!`. What does not fit, or holds a NUL, is refused whole: the name is then empty and stays so
/// until [`BootFile::clear`], because half a name would boot something else.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BootFile {
    bytes: [u8; FILE_LEN_MAX],
    len: u8,
    refused: bool,
}

impl BootFile {
    /// An empty name.
    pub const fn new() -> Self {
        Self { bytes: [0; FILE_LEN_MAX], len: 0, refused: false }
    }

    /// Empty again.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// True when nothing was written or it was refused.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True when a write was refused.
    pub fn is_refused(&self) -> bool {
        self.refused
    }

    /// The name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        // Only whole `str`s are ever appended, so this never fails.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl Default for BootFile {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Write for BootFile {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let start = usize::from(self.len);
        let room = self.bytes.get_mut(start..start + text.len());
        match room {
            Some(room) if !self.refused && !text.contains('\0') => {
                room.copy_from_slice(text.as_bytes());
                self.len += text.len() as u8;
                Ok(())
            }
            _ => {
                self.clear();
                self.refused = true;
                Err(fmt::Error)
            }
        }
    }
}

impl fmt::Display for BootFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for BootFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    #[test]
    fn a_name_of_127_bytes_fits_and_one_of_128_is_refused_whole() {
        let mut file = BootFile::new();
        write!(file, "{:0>127}", 1).unwrap();
        assert_eq!(file.as_bytes().len(), 127);
        let mut file = BootFile::new();
        assert!(write!(file, "abc{:0>125}", 1).is_err());
        assert!(file.is_empty() && file.is_refused());
        assert!(write!(file, "x").is_err(), "a refused name stays refused");
        file.clear();
        write!(file, "x").unwrap();
        assert_eq!(file.as_str(), "x");
    }

    #[test]
    fn a_nul_would_cut_the_name_and_is_refused() {
        let mut file = BootFile::new();
        assert!(write!(file, "ipxe.efi\0.txt").is_err());
        assert!(file.is_empty());
    }
}
