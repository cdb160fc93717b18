//! Leaving iPXE for the local disk.
//!
//! Firmware differs, and no way works on all of it, so there is a list of ways per firmware, best first. Which one a
//! machine is given is not decided here: [`Hints::local_boot`](super::Hints::local_boot) says where to begin. Two
//! things show that a way does not work. A `sanboot` that comes back asks for `/s/TOKEN/local?strategy=WORD` before
//! the script goes on to the next way. A firmware that is left and finds nothing boots from the network again, so the
//! machine's script is asked for once more within a minute of a local boot. Either is reason to begin one
//! further down the list next time; a machine that stays away has booted. The book keeps count.

use super::Urls;
use super::builder::Script;
use crate::wire::arch::Platform;

/// One way to leave for the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LocalStrategy {
    /// BIOS: boot the first disk from inside iPXE.
    FirstDisk,
    /// BIOS: boot the second disk; on some machines a card reader or a virtual disk is the first.
    SecondDisk,
    /// Leave with an error: UEFI tries the next entry of its boot order, a BIOS its next device.
    Next,
    /// Leave with success: what some firmware takes as "go on", and EDK2 as "show the set-up".
    Leave,
    /// UEFI: boot `\EFI\BOOT\BOOT<arch>.EFI` of the first disk from inside iPXE (builds of 2021 and later).
    RemovablePath,
}

impl LocalStrategy {
    /// The ways for a firmware, best first. Unknown firmware is asked for its platform by the script itself, so it has
    /// one way only.
    pub fn list(firmware: Option<Platform>) -> &'static [Self] {
        match firmware {
            // A BIOS hands the disk to whoever asks for drive 0x80, and leaving would run into the next boot device,
            // which on many machines is the network again.
            Some(Platform::Bios) => &[Self::FirstDisk, Self::Next, Self::SecondDisk],
            Some(Platform::Efi) => &[Self::Next, Self::RemovablePath, Self::Leave],
            Some(Platform::Other) | None => &[Self::FirstDisk],
        }
    }

    /// The word in call-backs, logs and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::FirstDisk => "first-disk",
            Self::SecondDisk => "second-disk",
            Self::Next => "next",
            Self::Leave => "leave",
            Self::RemovablePath => "removable-path",
        }
    }

    /// Where a reported way stands in its firmware's list. Only ways that can come back are reported, and of those
    /// each is on one list only.
    pub fn reported_place(self) -> Option<u8> {
        match self {
            Self::FirstDisk => Some(0),
            Self::SecondDisk => Some(2),
            Self::RemovablePath => Some(1),
            Self::Next | Self::Leave => None,
        }
    }

    /// The strategy of a call-back's word.
    pub fn of_word(word: &str) -> Option<Self> {
        [Self::FirstDisk, Self::SecondDisk, Self::Next, Self::Leave, Self::RemovablePath]
            .into_iter()
            .find(|strategy| strategy.word() == word)
    }
}

/// Ways on the list of a firmware that is known.
pub const LOCAL_WAYS: u8 = 3;

/// How a script leaves for the disk.
#[derive(Clone, Copy)]
pub(super) struct Disk<'a> {
    pub(super) firmware: Option<Platform>,
    /// Where in the list to begin; counts on from its end at its beginning.
    pub(super) first: u8,
    /// Where a way that came back is reported, if it may be.
    pub(super) report: Option<Urls<'a>>,
}

/// The end of every script.
pub(super) fn local(script: &mut Script<'_>, disk: Disk<'_>) {
    script.raw("echo bootstorm: booting from the local disk\n");
    let ways = LocalStrategy::list(disk.firmware);
    for way in ways.iter().skip(usize::from(disk.first) % ways.len()) {
        match way {
            LocalStrategy::FirstDisk if !matches!(disk.firmware, Some(Platform::Bios)) => {
                script.raw("iseq ${platform} pcbios && sanboot --no-describe --drive 0x80 ||\n");
                continue;
            }
            LocalStrategy::FirstDisk => script.raw("sanboot --no-describe --drive 0x80 ||\n"),
            LocalStrategy::SecondDisk => script.raw("sanboot --no-describe --drive 0x81 ||\n"),
            LocalStrategy::RemovablePath => script.raw("sanboot --no-describe --drive 0 ||\n"),
            LocalStrategy::Next if disk.firmware == Some(Platform::Efi) => {
                script.raw("# with an error, or UEFI shows its set-up instead of its next entry\nexit 1\n");
                return;
            }
            LocalStrategy::Next => break,
            LocalStrategy::Leave => {
                script.raw("exit 0\n");
                return;
            }
        };
        if let Some(urls) = disk.report {
            script.raw("imgfetch --name back --timeout 5000 ").base(urls.base).raw("/s/").token(urls.token);
            script.raw("/local?strategy=").raw(way.word()).raw(" ||\nimgfree back ||\n");
        }
    }
    script.raw("exit 1\n");
}
