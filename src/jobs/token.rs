//! Boot tokens: what ties a download to the boot that was told to make it.
//!
//! A token proves itself: it holds the boot's number, the machine's address, the job and an expiry, followed by a
//! keyed hash over them. No core keeps a list of tokens, so none can be filled up by asking for scripts.
//! It is 64 characters of lower-case base32 (RFC 4648 alphabet), which needs no escaping in a URL or a script.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::job::JobId;
use crate::wire::MacAddr;

/// One boot of one machine, as counted by whoever composes its script. Written `b` and sixteen hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BootId(pub u64);

impl BootId {
    /// The number of scripts that are rendered for people to read. It is no boot's: a token with it opens and moves
    /// nothing.
    pub const SHOWN: Self = Self(0);
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{:016x}", self.0)
    }
}

/// A text is not a boot's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotABootId;

impl fmt::Display for NotABootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected a boot number such as b00000000000004d2")
    }
}

impl std::error::Error for NotABootId {}

impl std::str::FromStr for BootId {
    type Err = NotABootId;

    fn from_str(text: &str) -> Result<Self, NotABootId> {
        let digits = text.strip_prefix('b').ok_or(NotABootId)?;
        if digits.len() != 16 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NotABootId);
        }
        u64::from_str_radix(digits, 16).map(Self).map_err(|_| NotABootId)
    }
}

impl Serialize for BootId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BootId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Where boots get their numbers: one counter for all cores.
///
/// Numbers only grow, across restarts too, if each start begins above all earlier ones. So an order can say which
/// boots began before it.
#[derive(Debug)]
pub struct Boots(AtomicU64);

impl From<BootId> for Boots {
    fn from(first: BootId) -> Self {
        Self(AtomicU64::new(first.0))
    }
}

impl Boots {
    /// A number that no other boot has.
    pub fn begin(&self) -> BootId {
        BootId(self.0.fetch_add(1, Ordering::SeqCst))
    }

    /// No boot that begins from here on has a lower number.
    pub fn peek(&self) -> BootId {
        BootId(self.0.load(Ordering::SeqCst))
    }
}

/// What a token says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token {
    /// The boot whose script carried it.
    pub boot: BootId,
    /// The machine's address, when the script request named one.
    pub mac: Option<MacAddr>,
    /// The job behind the script, if any.
    pub job: Option<JobId>,
    /// The script was a menu: the token opens what a menu shows, instead of one job's image.
    pub menu: bool,
    /// Which file's end is the boot's point of no return, as [`mark_of`] has it; 0 where its script was that itself, or
    /// it has none. What the image is made of can change while a boot is under way: this is what its script was made of.
    pub last: u32,
    /// Not valid from this second of Unix time on.
    pub expires_unix: u32,
}

const PAYLOAD_LEN: usize = 1 + 8 + 6 + 5 + 3 + 4;
/// 104 bits: what is left of 64 base32 characters after the payload, and far beyond guessing online.
const TAG_LEN: usize = 13;
const RAW_LEN: usize = PAYLOAD_LEN + TAG_LEN;
const TEXT_LEN: usize = 64;
const _: () = assert!(RAW_LEN * 8 == TEXT_LEN * 5);

/// First byte of every token of this layout; the low bits say which fields are filled.
const LAYOUT: u8 = 0x20;
const HAS_MAC: u8 = 1;
const HAS_JOB: u8 = 2;
const IS_MENU: u8 = 4;
/// Bits of [`Token::last`].
const MARK_BITS: u32 = 24;

/// A file's name as a token has room for it, never 0. FNV-1a: the same on every core and after every restart.
pub fn mark_of(name: &str) -> u32 {
    let hash =
        name.bytes().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    ((hash >> MARK_BITS) ^ (hash & ((1 << MARK_BITS) - 1))).max(1)
}

/// Keeps these hashes apart from any other use of the same key.
const PURPOSE: &[u8; 16] = b"bootstorm boot 1";
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A token's text: always [`SignedToken::LEN`] characters of `a-z2-7`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SignedToken([u8; TEXT_LEN]);

impl SignedToken {
    /// Characters of every token.
    pub const LEN: usize = TEXT_LEN;

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("the base32 alphabet is ASCII")
    }
}

impl fmt::Display for SignedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SignedToken {
    /// A token opens files; logs get its first characters only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}...", &self.as_str()[..8])
    }
}

/// The server's secret for tokens: 32 random bytes, the same on every core, chosen by the caller.
#[derive(Clone)]
pub struct TokenKey([u8; 32]);

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(..)")
    }
}

impl TokenKey {
    /// A key of 32 bytes that nobody else knows.
    pub fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    /// The text of `token`.
    pub fn sign(&self, token: &Token) -> SignedToken {
        let mut raw = [0u8; RAW_LEN];
        let (payload, tag) = raw.split_at_mut(PAYLOAD_LEN);
        payload[0] = LAYOUT;
        payload[1..9].copy_from_slice(&token.boot.0.to_be_bytes());
        if let Some(mac) = token.mac {
            payload[0] |= HAS_MAC;
            payload[9..15].copy_from_slice(&mac.0);
        }
        if let Some(job) = token.job {
            payload[0] |= HAS_JOB;
            // A server that adds a thousand a second has enough of them for 34 years.
            payload[15..20].copy_from_slice(&job.0.to_be_bytes()[3..]);
        }
        payload[20..23].copy_from_slice(&token.last.to_be_bytes()[1..]);
        if token.menu {
            payload[0] |= IS_MENU;
        }
        payload[23..27].copy_from_slice(&token.expires_unix.to_be_bytes());
        tag.copy_from_slice(&self.tag(payload));
        SignedToken(encode(&raw))
    }

    /// What `text` says, if this key made it and it has not expired at `now_unix`. Every other text is `None`,
    /// without a word why.
    pub fn verify(&self, text: &str, now_unix: u32) -> Option<Token> {
        let raw = decode(text)?;
        let (payload, tag) = raw.split_at(PAYLOAD_LEN);
        // Every byte is looked at whatever the earlier ones say: the time taken tells nothing about the tag.
        let difference = self.tag(payload).iter().zip(tag).fold(0u8, |sum, (a, b)| sum | (a ^ b));
        if std::hint::black_box(difference) != 0 {
            return None;
        }
        let flags = payload[0] ^ LAYOUT;
        if flags & !(HAS_MAC | HAS_JOB | IS_MENU) != 0 {
            return None;
        }
        let token = Token {
            boot: BootId(u64::from_be_bytes(payload[1..9].try_into().ok()?)),
            mac: (flags & HAS_MAC != 0).then(|| payload[9..15].try_into().map(MacAddr)).transpose().ok()?,
            job: (flags & HAS_JOB != 0)
                .then(|| JobId(payload[15..20].iter().fold(0, |id, byte| id << 8 | u64::from(*byte)))),
            menu: flags & IS_MENU != 0,
            last: payload[20..23].iter().fold(0, |mark, byte| mark << 8 | u32::from(*byte)),
            expires_unix: u32::from_be_bytes(payload[23..27].try_into().ok()?),
        };
        (now_unix < token.expires_unix).then_some(token)
    }

    fn tag(&self, payload: &[u8]) -> [u8; TAG_LEN] {
        let mut message = [0u8; PURPOSE.len() + PAYLOAD_LEN];
        message[..PURPOSE.len()].copy_from_slice(PURPOSE);
        message[PURPOSE.len()..].copy_from_slice(payload);
        let hash = blake3::keyed_hash(&self.0, &message);
        let mut tag = [0u8; TAG_LEN];
        tag.copy_from_slice(&hash.as_bytes()[..TAG_LEN]);
        tag
    }
}

fn encode(raw: &[u8; RAW_LEN]) -> [u8; TEXT_LEN] {
    let mut text = [0u8; TEXT_LEN];
    for (characters, bytes) in text.chunks_exact_mut(8).zip(raw.chunks_exact(5)) {
        let bits = bytes.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        for (index, character) in characters.iter_mut().enumerate() {
            *character = ALPHABET[(bits >> (35 - 5 * index) & 31) as usize];
        }
    }
    text
}

fn decode(text: &str) -> Option<[u8; RAW_LEN]> {
    let text: &[u8; TEXT_LEN] = text.as_bytes().try_into().ok()?;
    let mut raw = [0u8; RAW_LEN];
    for (bytes, characters) in raw.chunks_exact_mut(5).zip(text.chunks_exact(8)) {
        let mut bits = 0u64;
        for character in characters {
            let value = match character {
                b'a'..=b'z' => character - b'a',
                b'2'..=b'7' => character - b'2' + 26,
                _ => return None,
            };
            bits = bits << 5 | u64::from(value);
        }
        bytes.copy_from_slice(&bits.to_be_bytes()[3..]);
    }
    Some(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 1_800_000_000;

    fn key() -> TokenKey {
        TokenKey::new([7; 32])
    }

    fn token() -> Token {
        Token {
            boot: BootId(0x0123_4567_89ab_cdef),
            mac: Some(MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56])),
            job: Some(JobId(17)),
            menu: false,
            last: mark_of("initrd.img"),
            expires_unix: NOW + 60,
        }
    }

    #[test]
    fn what_was_signed_is_what_is_read() {
        for token in [
            token(),
            Token { mac: None, ..token() },
            Token { job: None, ..token() },
            Token { menu: true, ..token() },
            Token {
                mac: None,
                job: None,
                menu: true,
                last: 0,
                boot: BootId(u64::MAX),
                expires_unix: u32::MAX,
            },
            Token { job: Some(JobId((1 << 40) - 1)), last: (1 << 24) - 1, ..token() },
        ] {
            let text = key().sign(&token);
            assert_eq!(text.as_str().len(), SignedToken::LEN);
            assert!(text.as_str().bytes().all(|byte| ALPHABET.contains(&byte)));
            assert_eq!(key().verify(text.as_str(), NOW), Some(token));
        }
    }

    #[test]
    fn any_other_character_anywhere_is_a_forgery() {
        let text = key().sign(&token()).to_string();
        for index in 0..text.len() {
            for other in (0u8..128).map(char::from).filter(|c| !text[index..].starts_with(*c)) {
                let forged = format!("{}{other}{}", &text[..index], &text[index + 1..]);
                assert_eq!(key().verify(&forged, NOW), None, "{forged}");
            }
        }
    }

    #[test]
    fn another_key_another_length_and_upper_case_are_refused() {
        let text = key().sign(&token()).to_string();
        assert_eq!(TokenKey::new([8; 32]).verify(&text, NOW), None);
        assert_eq!(key().verify(&text[..63], NOW), None);
        assert_eq!(key().verify(&format!("{text}a"), NOW), None);
        assert_eq!(key().verify(&text.to_uppercase(), NOW), None);
        assert_eq!(key().verify("", NOW), None);
    }

    #[test]
    fn a_token_ends_at_its_second() {
        let text = key().sign(&token()).to_string();
        assert!(key().verify(&text, NOW + 59).is_some());
        assert_eq!(key().verify(&text, NOW + 60), None);
        assert_eq!(key().verify(&text, u32::MAX), None);
    }

    #[test]
    fn logs_never_show_a_whole_token_or_the_key() {
        let text = key().sign(&token());
        assert_eq!(format!("{text:?}").len(), 11);
        assert_eq!(format!("{:?}", key()), "TokenKey(..)");
    }

    #[test]
    fn boot_numbers_are_read_as_written() {
        assert_eq!(BootId(1234).to_string(), "b00000000000004d2");
        assert_eq!("b00000000000004d2".parse(), Ok(BootId(1234)));
        for text in ["", "b", "4d2", "b4d2", "b+0000000000004d2", "b00000000000004d2f"] {
            assert_eq!(text.parse::<BootId>(), Err(NotABootId), "{text}");
        }
    }
}
