//! TFTP packets (RFC 1350; options of RFC 2347, 2348, 2349 and 7440).

use super::reader::{Reader, Writer};

/// Opcodes.
pub mod opcode {
    #![allow(missing_docs, reason = "RFC 1350 §5 and RFC 2347 name them")]
    pub const RRQ: u16 = 1;
    pub const WRQ: u16 = 2;
    pub const DATA: u16 = 3;
    pub const ACK: u16 = 4;
    pub const ERROR: u16 = 5;
    pub const OACK: u16 = 6;
}

/// Block length without the `blksize` option.
pub const BLKSIZE_DEFAULT: u16 = 512;
/// Smallest `blksize` (RFC 2348).
pub const BLKSIZE_MIN: u16 = 8;
/// Largest `blksize` (RFC 2348).
pub const BLKSIZE_MAX: u16 = 65464;

/// Transfer modes. `mail` is not one any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Bytes as they are.
    Octet,
    /// CR LF line ends, CR NUL for a lone CR.
    Netascii,
}

/// Error codes of RFC 1350 §5 and RFC 2347.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the RFCs name them")]
pub enum ErrorCode {
    NotDefined,
    FileNotFound,
    AccessViolation,
    DiskFull,
    IllegalOperation,
    UnknownTid,
    FileExists,
    NoSuchUser,
    OptionRefused,
    Unknown(u16),
}

impl ErrorCode {
    /// From the number on the wire.
    pub fn from_code(code: u16) -> Self {
        match code {
            0 => Self::NotDefined,
            1 => Self::FileNotFound,
            2 => Self::AccessViolation,
            3 => Self::DiskFull,
            4 => Self::IllegalOperation,
            5 => Self::UnknownTid,
            6 => Self::FileExists,
            7 => Self::NoSuchUser,
            8 => Self::OptionRefused,
            other => Self::Unknown(other),
        }
    }

    /// The number on the wire.
    pub fn code(self) -> u16 {
        match self {
            Self::NotDefined => 0,
            Self::FileNotFound => 1,
            Self::AccessViolation => 2,
            Self::DiskFull => 3,
            Self::IllegalOperation => 4,
            Self::UnknownTid => 5,
            Self::FileExists => 6,
            Self::NoSuchUser => 7,
            Self::OptionRefused => 8,
            Self::Unknown(code) => code,
        }
    }
}

/// Why bytes are not a TFTP packet we take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// Shorter than its opcode says it must be.
    Truncated,
    /// No such opcode.
    BadOpcode(u16),
    /// File name or mode without its NUL.
    BadString,
    /// Neither octet nor netascii.
    BadMode,
}

/// The options of a request or an OACK. One whose value is no number in its range is left out (RFC 2347: ignored),
/// and so is one nobody here knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// RFC 2348, 8..=65464.
    pub blksize: Option<u16>,
    /// RFC 2349; 0 in a read request asks for the size.
    pub tsize: Option<u64>,
    /// RFC 2349, seconds 1..=255.
    pub timeout_secs: Option<u8>,
    /// RFC 7440, 1..=65535.
    pub windowsize: Option<u16>,
}

impl Options {
    /// Reads `name NUL value NUL ...`; the last value may lack its NUL (Windows' boot manager). Of a repeated option
    /// the first counts.
    fn parse(mut bytes: &[u8]) -> Self {
        let mut options = Self::default();
        while let Some((name, rest)) = string(bytes) {
            let (value, rest) = string(rest).unwrap_or((rest, &[]));
            bytes = rest;
            let Some(number) = number(value) else { continue };
            let within = |min: u64, max: u64| (min..=max).contains(&number);
            if name.eq_ignore_ascii_case(b"blksize") && within(BLKSIZE_MIN.into(), BLKSIZE_MAX.into()) {
                options.blksize.get_or_insert(number as u16);
            } else if name.eq_ignore_ascii_case(b"tsize") {
                options.tsize.get_or_insert(number);
            } else if name.eq_ignore_ascii_case(b"timeout") && within(1, 255) {
                options.timeout_secs.get_or_insert(number as u8);
            } else if name.eq_ignore_ascii_case(b"windowsize") && within(1, 65535) {
                options.windowsize.get_or_insert(number as u16);
            }
        }
        options
    }

    fn emit(&self, writer: &mut Writer<'_>) -> Option<()> {
        let mut put = |name: &[u8], value: Option<u64>| {
            let Some(value) = value else { return Some(()) };
            writer.put(name)?;
            writer.u8(0)?;
            put_decimal(writer, value)?;
            writer.u8(0)
        };
        put(b"tsize", self.tsize)?;
        put(b"blksize", self.blksize.map(u64::from))?;
        put(b"timeout", self.timeout_secs.map(u64::from))?;
        put(b"windowsize", self.windowsize.map(u64::from))
    }
}

/// Up to the NUL, and what follows it.
fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|b| *b == 0)?;
    Some((bytes.get(..end)?, bytes.get(end + 1..)?))
}

/// Decimal digits only, no sign, no blank, no overflow.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

fn put_decimal(writer: &mut Writer<'_>, mut value: u64) -> Option<()> {
    let mut digits = [0u8; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            return writer.put(&digits[start..]);
        }
    }
}

/// A read or write request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// True for WRQ.
    pub write: bool,
    /// File name, byte for byte as sent, without its NUL.
    pub name: &'a [u8],
    /// Transfer mode.
    pub mode: Mode,
    /// Options understood.
    pub options: Options,
}

/// Any packet a server or client receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// RRQ or WRQ.
    Request(Request<'a>),
    /// DATA: block number and payload.
    Data(u16, &'a [u8]),
    /// ACK; trailing bytes (`msftwindow`) are tolerated.
    Ack(u16),
    /// ERROR with its message, without NUL.
    Error(ErrorCode, &'a [u8]),
    /// OACK.
    Oack(Options),
}

impl<'a> Packet<'a> {
    /// Parses one datagram.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(bytes);
        let opcode = reader.u16_be().ok_or(Error::Truncated)?;
        match opcode {
            opcode::RRQ | opcode::WRQ => {
                let (name, rest) = string(reader.rest()).ok_or(Error::BadString)?;
                let (mode, rest) = string(rest).ok_or(Error::BadString)?;
                let mode = if mode.eq_ignore_ascii_case(b"octet") {
                    Mode::Octet
                } else if mode.eq_ignore_ascii_case(b"netascii") {
                    Mode::Netascii
                } else {
                    return Err(Error::BadMode);
                };
                let options = Options::parse(rest);
                Ok(Self::Request(Request { write: opcode == opcode::WRQ, name, mode, options }))
            }
            opcode::DATA => Ok(Self::Data(reader.u16_be().ok_or(Error::Truncated)?, reader.rest())),
            opcode::ACK => Ok(Self::Ack(reader.u16_be().ok_or(Error::Truncated)?)),
            opcode::ERROR => {
                let code = ErrorCode::from_code(reader.u16_be().ok_or(Error::Truncated)?);
                let message = string(reader.rest()).map_or(reader.rest(), |(message, _)| message);
                Ok(Self::Error(code, message))
            }
            opcode::OACK => Ok(Self::Oack(Options::parse(reader.rest()))),
            other => Err(Error::BadOpcode(other)),
        }
    }
}

/// Emits RRQ with the options that are set; length written.
pub fn emit_rrq(buffer: &mut [u8], name: &[u8], mode: Mode, options: &Options) -> Option<usize> {
    let mut writer = Writer::new(buffer);
    writer.u16_be(opcode::RRQ)?;
    writer.put(name)?;
    writer.u8(0)?;
    writer.put(match mode {
        Mode::Octet => b"octet\0",
        Mode::Netascii => b"netascii\0",
    })?;
    options.emit(&mut writer)?;
    Some(writer.len())
}

/// Emits OACK with the options that are set; length written.
pub fn emit_oack(buffer: &mut [u8], options: &Options) -> Option<usize> {
    let mut writer = Writer::new(buffer);
    writer.u16_be(opcode::OACK)?;
    options.emit(&mut writer)?;
    Some(writer.len())
}

/// Emits ACK.
pub fn emit_ack(buffer: &mut [u8], block: u16) -> Option<usize> {
    let mut writer = Writer::new(buffer);
    writer.u16_be(opcode::ACK)?;
    writer.u16_be(block)?;
    Some(writer.len())
}

/// The four bytes before a DATA payload.
pub fn data_header(block: u16) -> [u8; 4] {
    let [high, low] = block.to_be_bytes();
    [0, opcode::DATA as u8, high, low]
}

/// Emits ERROR.
pub fn emit_error(buffer: &mut [u8], code: ErrorCode, message: &str) -> Option<usize> {
    let mut writer = Writer::new(buffer);
    writer.u16_be(opcode::ERROR)?;
    writer.u16_be(code.code())?;
    writer.put(message.as_bytes())?;
    writer.u8(0)?;
    Some(writer.len())
}

/// A text as netascii sends it: LF as CR LF, CR as CR NUL (RFC 1350 §1 by way of RFC 764).
pub fn to_netascii(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 16);
    for byte in text {
        match byte {
            b'\n' => out.extend_from_slice(b"\r\n"),
            b'\r' => out.extend_from_slice(b"\r\0"),
            other => out.push(*other),
        }
    }
    out
}

/// Parses any bytes and, where they are a packet, holds what must hold: what is emitted parses to the same.
pub fn fuzz_packet(bytes: &[u8]) {
    let mut buffer = [0; 2048];
    match Packet::parse(bytes) {
        Ok(Packet::Request(request)) => {
            if let Some(len) = emit_rrq(&mut buffer, request.name, request.mode, &request.options) {
                let again = Packet::parse(&buffer[..len]);
                assert_eq!(again, Ok(Packet::Request(Request { write: false, ..request })));
            }
        }
        Ok(Packet::Oack(options)) => {
            if let Some(len) = emit_oack(&mut buffer, &options) {
                assert_eq!(Packet::parse(&buffer[..len]), Ok(Packet::Oack(options)));
            }
        }
        Ok(Packet::Ack(block)) => {
            let len = emit_ack(&mut buffer, block).expect("an ACK fits 2048 bytes");
            assert_eq!(Packet::parse(&buffer[..len]), Ok(Packet::Ack(block)));
        }
        Ok(Packet::Data(block, payload)) => {
            assert_eq!(bytes.get(..4), Some(data_header(block).as_slice()));
            assert_eq!(payload.len() + 4, bytes.len());
        }
        Ok(Packet::Error(code, _)) => assert_eq!(ErrorCode::from_code(code.code()), code),
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(bytes: &[u8]) -> Request<'_> {
        match Packet::parse(bytes) {
            Ok(Packet::Request(request)) => request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_size_query_of_uefi_firmware_is_read() {
        let r = request(b"\0\x01snponly.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0");
        assert_eq!(r.name, b"snponly.efi");
        assert_eq!(r.mode, Mode::Octet);
        assert_eq!(
            r.options,
            Options { blksize: Some(1468), tsize: Some(0), timeout_secs: None, windowsize: Some(4) }
        );
    }

    #[test]
    fn option_names_and_modes_have_no_case() {
        let r = request(b"\0\x01x\0OcTeT\0BLKSIZE\x001024\0TimeOut\x003\0");
        assert_eq!((r.options.blksize, r.options.timeout_secs), (Some(1024), Some(3)));
    }

    #[test]
    fn a_last_value_without_its_nul_counts() {
        let r = request(b"\0\x01\\Boot\\BCD\0octet\0tsize\x000\0msftwindow\x0031416\0blksize\x001456");
        assert_eq!(r.name, b"\\Boot\\BCD");
        assert_eq!((r.options.blksize, r.options.tsize), (Some(1456), Some(0)));
    }

    #[test]
    fn values_out_of_range_are_as_if_not_sent() {
        for (bytes, expected) in [
            (b"\0\x01x\0octet\0blksize\x007\0".as_slice(), Options::default()),
            (b"\0\x01x\0octet\0blksize\x0065465\0", Options::default()),
            (b"\0\x01x\0octet\0blksize\0+512\0", Options::default()),
            (b"\0\x01x\0octet\0blksize\0\0", Options::default()),
            (b"\0\x01x\0octet\0blksize\x0099999999999999999999\0", Options::default()),
            (b"\0\x01x\0octet\0timeout\x00256\0", Options::default()),
            (b"\0\x01x\0octet\0timeout\x000\0", Options::default()),
            (b"\0\x01x\0octet\0windowsize\x000\0", Options::default()),
            (b"\0\x01x\0octet\0windowsize\x0065536\0", Options::default()),
            (b"\0\x01x\0octet\0blksize", Options::default()),
            (
                b"\0\x01x\0octet\0blksize\x00512\0blksize\x001024\0",
                Options { blksize: Some(512), ..Options::default() },
            ),
        ] {
            assert_eq!(request(bytes).options, expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn what_is_no_packet_says_why() {
        for (bytes, error) in [
            (b"".as_slice(), Error::Truncated),
            (b"\0", Error::Truncated),
            (b"\0\x03\0", Error::Truncated),
            (b"\0\x04\x01", Error::Truncated),
            (b"\0\x05\0", Error::Truncated),
            (b"\0\x07", Error::BadOpcode(7)),
            (b"\x01\x01x\0octet\0", Error::BadOpcode(0x101)),
            (b"\0\x01", Error::BadString),
            (b"\0\x01x", Error::BadString),
            (b"\0\x01x\0octet", Error::BadString),
            (b"\0\x01x\0mail\0", Error::BadMode),
        ] {
            assert_eq!(Packet::parse(bytes), Err(error), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn an_ack_of_five_bytes_is_an_ack() {
        assert_eq!(Packet::parse(b"\0\x04\0\x09\x08"), Ok(Packet::Ack(9)));
    }

    #[test]
    fn packets_survive_their_own_parser_cut_anywhere_and_with_any_byte_changed() {
        let mut buffer = [0; 128];
        let options = Options {
            blksize: Some(1432),
            tsize: Some(u64::MAX),
            timeout_secs: Some(255),
            windowsize: Some(65535),
        };
        let len = emit_rrq(&mut buffer, b"images/x/boot.wim", Mode::Netascii, &options).unwrap();
        assert_eq!(request(&buffer[..len]).options, options);
        for cut in 0..len {
            fuzz_packet(&buffer[..cut]);
        }
        for at in 0..len {
            for value in 0..=255 {
                let mut changed = buffer[..len].to_vec();
                changed[at] = value;
                fuzz_packet(&changed);
            }
        }
    }

    #[test]
    fn netascii_ends_lines_as_telnet_does() {
        assert_eq!(to_netascii(b"a\nb\r\n"), b"a\r\nb\r\0\r\n");
    }

    #[test]
    fn a_buffer_too_small_writes_nothing_usable() {
        let options = Options { tsize: Some(5), ..Options::default() };
        assert_eq!(emit_oack(&mut [0; 9], &options), None);
        assert_eq!(emit_oack(&mut [0; 10], &options), Some(10));
        assert_eq!(emit_error(&mut [0; 4], ErrorCode::FileNotFound, "x"), None);
    }
}
