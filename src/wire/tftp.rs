//! TFTP packets (RFC 1350, options of RFC 2347-2349 and 7440). (Being filled in; the signatures are the contract.)

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

/// Why bytes are not a TFTP packet we take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// Shorter than its opcode says it must be.
    Truncated,
    /// No such opcode.
    BadOpcode(u16),
    /// File name or mode without its NUL, or an empty file name.
    BadString,
    /// Neither octet nor netascii.
    BadMode,
}

/// The options of a request, parsed; an option whose value is no number in range is left out (RFC 2347: ignored).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// RFC 2348, 8..=65464 as asked.
    pub blksize: Option<u16>,
    /// RFC 2349; 0 in a read request asks for the size.
    pub tsize: Option<u64>,
    /// RFC 2349, seconds 1..=255.
    pub timeout_secs: Option<u8>,
    /// RFC 7440, 1..=65535.
    pub windowsize: Option<u16>,
}

/// A read or write request.
#[derive(Clone, Copy, Debug)]
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
#[derive(Clone, Copy, Debug)]
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
    pub fn parse(_bytes: &'a [u8]) -> Result<Self, Error> {
        unimplemented!()
    }
}

/// Emits RRQ with the options that are set; length written.
pub fn emit_rrq(_buffer: &mut [u8], _name: &[u8], _mode: Mode, _options: &Options) -> Option<usize> {
    unimplemented!()
}
/// Emits OACK with the options that are set; length written.
pub fn emit_oack(_buffer: &mut [u8], _options: &Options) -> Option<usize> {
    unimplemented!()
}
/// Emits ACK.
pub fn emit_ack(_buffer: &mut [u8], _block: u16) -> Option<usize> {
    unimplemented!()
}
/// The four bytes before a DATA payload.
pub fn data_header(_block: u16) -> [u8; 4] {
    unimplemented!()
}
/// Emits ERROR.
pub fn emit_error(_buffer: &mut [u8], _code: ErrorCode, _message: &str) -> Option<usize> {
    unimplemented!()
}
