//! Request heads and bodies, cut out of the bytes of a connection.

use std::fmt;

use super::{HOST, Method, Status, TOKEN, Version, class_len, decimal, form, list_members};

/// The largest request head taken, bytes, from the method to the empty line.
pub const HEAD_MAX: usize = 16 * 1024;
/// The largest request body taken, bytes. Forms of identity fields are the only bodies there are.
pub const BODY_MAX: usize = 16 * 1024;
/// The longest request line taken, bytes; a little over the 8000 that RFC 9112 §3 asks for.
pub const REQUEST_LINE_MAX: usize = 8 * 1024;
/// The most fields in one head.
pub const FIELDS_MAX: usize = 64;

/// Empty lines skipped before a request (RFC 9112 §2.2 asks for at least one).
const EMPTY_LINES_MAX: usize = 4;
/// The longest method name taken as a method; the longest registered one is UPDATEREDIRECTREF.
const METHOD_MAX: usize = 32;

/// What stands at the front of a connection's bytes.
#[derive(Clone, Copy, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "made and consumed on the stack once per request; a box would allocate"
)]
pub enum Next<'a> {
    /// Nothing wrong so far, but not all there.
    More,
    /// A whole request.
    Request {
        /// The request, borrowing the bytes.
        request: Request<'a>,
        /// Bytes to take off the front: empty lines, head and body.
        len: usize,
    },
    /// Not a request this server takes. The connection must be closed after the answer, since where the next
    /// request would start is unknown.
    Refuse {
        /// The status to answer with.
        status: Status,
        /// Why, for counters and logs.
        reason: RefuseReason,
    },
}

/// Why bytes are refused before anybody asks what they mean.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RefuseReason {
    /// Not `METHOD TARGET HTTP/x.y`, or more than a few empty lines before it.
    RequestLine,
    /// The method is no token.
    MethodToken,
    /// A method name longer than any there is.
    MethodLength,
    /// A request line over [`REQUEST_LINE_MAX`].
    LineTooLong,
    /// Neither `/path`, an absolute http(s) URI, nor a form that goes with the method.
    Target,
    /// A major version other than 1.
    Version,
    /// CR without LF.
    BareCr,
    /// LF without CR.
    BareLf,
    /// NUL or another control byte in the head.
    ControlByte,
    /// A line that begins with a blank (obs-fold, or a blank before the first field).
    Fold,
    /// A field line without a proper name, or with a blank before its colon.
    Field,
    /// A head over [`HEAD_MAX`].
    HeadTooLarge,
    /// More than [`FIELDS_MAX`] fields.
    TooManyFields,
    /// HTTP/1.1 without Host.
    HostMissing,
    /// More than one Host.
    HostTwice,
    /// A Host, or the authority of an absolute target, that is none.
    HostMalformed,
    /// Content-Length is no decimal number, or two of them differ.
    ContentLength,
    /// Content-Length and Transfer-Encoding together, or Transfer-Encoding in HTTP/1.0, or one that does not
    /// end in `chunked`: where the body ends is anyone's guess (RFC 9112 §6.1, §6.3).
    TransferEncoding,
    /// A chunked body; no boot client sends one.
    Chunked,
    /// A transfer coding other than chunked.
    TransferCoding,
    /// A body over [`BODY_MAX`].
    BodyTooLarge,
    /// An Expect other than `100-continue`.
    Expectation,
}

impl RefuseReason {
    /// Every reason, for counters.
    pub const ALL: [Self; 22] = [
        Self::RequestLine,
        Self::MethodToken,
        Self::MethodLength,
        Self::LineTooLong,
        Self::Target,
        Self::Version,
        Self::BareCr,
        Self::BareLf,
        Self::ControlByte,
        Self::Fold,
        Self::Field,
        Self::HeadTooLarge,
        Self::TooManyFields,
        Self::HostMissing,
        Self::HostTwice,
        Self::HostMalformed,
        Self::ContentLength,
        Self::TransferEncoding,
        Self::Chunked,
        Self::TransferCoding,
        Self::BodyTooLarge,
        Self::Expectation,
    ];

    /// The status that goes with it.
    pub fn status(self) -> Status {
        match self {
            Self::MethodLength | Self::TransferCoding => Status::NOT_IMPLEMENTED,
            Self::LineTooLong => Status::URI_TOO_LONG,
            Self::Version => Status::VERSION_NOT_SUPPORTED,
            Self::HeadTooLarge | Self::TooManyFields => Status::FIELDS_TOO_LARGE,
            Self::Chunked => Status::LENGTH_REQUIRED,
            Self::BodyTooLarge => Status::CONTENT_TOO_LARGE,
            Self::Expectation => Status::EXPECTATION_FAILED,
            Self::RequestLine
            | Self::MethodToken
            | Self::Target
            | Self::BareCr
            | Self::BareLf
            | Self::ControlByte
            | Self::Fold
            | Self::Field
            | Self::HostMissing
            | Self::HostTwice
            | Self::HostMalformed
            | Self::ContentLength
            | Self::TransferEncoding => Status::BAD_REQUEST,
        }
    }

    /// One word for counters and logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::RequestLine => "request-line",
            Self::MethodToken => "method-token",
            Self::MethodLength => "method-length",
            Self::LineTooLong => "line-too-long",
            Self::Target => "target",
            Self::Version => "version",
            Self::BareCr => "bare-cr",
            Self::BareLf => "bare-lf",
            Self::ControlByte => "control-byte",
            Self::Fold => "fold",
            Self::Field => "field",
            Self::HeadTooLarge => "head-too-large",
            Self::TooManyFields => "too-many-fields",
            Self::HostMissing => "host-missing",
            Self::HostTwice => "host-twice",
            Self::HostMalformed => "host-malformed",
            Self::ContentLength => "content-length",
            Self::TransferEncoding => "transfer-encoding",
            Self::Chunked => "chunked",
            Self::TransferCoding => "transfer-coding",
            Self::BodyTooLarge => "body-too-large",
            Self::Expectation => "expectation",
        }
    }
}

impl fmt::Display for RefuseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// One request, borrowed from the connection's bytes.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Method.
    pub method: Method,
    /// The method's name as sent.
    pub method_token: &'a str,
    /// The whole target as sent.
    pub target: &'a str,
    /// The path as sent, still percent-encoded and beginning with `/`. `*` for `OPTIONS *`, empty for CONNECT.
    pub path: &'a str,
    /// What stands behind the first `?`, still encoded.
    pub query: Option<&'a str>,
    /// Version.
    pub version: Version,
    /// The body, whole.
    pub body: &'a [u8],
    authority: Option<&'a str>,
    /// The field lines, each with its CR LF. A request is moved about, so no list of them is in it.
    lines: &'a [u8],
    known: Known<'a>,
    is_ipxe: bool,
}

/// Name and value of a field line, without its CR: a token, a colon, and a value whose blanks around it do not count. That
/// it holds no control byte is known. `None` for anything else.
fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, rest) = line.split_at(class_len(line, TOKEN));
    let [b':', value @ ..] = rest else { return None };
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let value = value.get(value.iter().take_while(|byte| blank(byte)).count()..)?;
    let value_len = value.len() - value.iter().rev().take_while(|byte| blank(byte)).count();
    (!name.is_empty()).then_some((name, value.get(..value_len)?))
}

/// What every request is asked for, found on the way through its lines.
#[derive(Clone, Copy, Default)]
struct Known<'a> {
    /// Content-Length or Transfer-Encoding is there.
    framing: bool,
    expect: bool,
    connection: bool,
    /// How often Host is there, and the last of them.
    hosts: usize,
    host: &'a [u8],
    /// The first that is text.
    user_agent: Option<&'a str>,
}

impl<'a> Known<'a> {
    fn note(&mut self, name: &[u8], value: &'a [u8]) {
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"Host") => (self.hosts, self.host) = (self.hosts + 1, value),
            6 => self.expect |= name.eq_ignore_ascii_case(b"Expect"),
            10 if name.eq_ignore_ascii_case(b"User-Agent") => {
                self.user_agent = self.user_agent.or(std::str::from_utf8(value).ok());
            }
            10 => self.connection |= name.eq_ignore_ascii_case(b"Connection"),
            14 => self.framing |= name.eq_ignore_ascii_case(b"Content-Length"),
            17 => self.framing |= name.eq_ignore_ascii_case(b"Transfer-Encoding"),
            _ => {}
        }
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method_token)
            .field("target", &self.target)
            .field("version", &self.version)
            .field("fields", &self.pairs().count())
            .field("body_len", &self.body.len())
            .finish()
    }
}

impl<'a> Request<'a> {
    /// Every field in order: name as sent, value without surrounding blanks.
    pub fn fields(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        self.pairs().map(|(name, value)| (std::str::from_utf8(name).unwrap_or_default(), value))
    }

    fn pairs(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut rest = self.lines;
        std::iter::from_fn(move || {
            let (line, behind) = rest.split_at(rest.iter().position(|byte| *byte == b'\r')?);
            rest = behind.get(2..)?;
            field(line)
        })
    }

    /// The values of every field of that name (any case).
    fn named<'n>(&self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        self.pairs()
            .filter(move |(found, _)| found.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value)
    }

    /// The values of every field of that name (any case) that are text.
    pub fn headers<'n>(&self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.named(name).filter_map(|value| std::str::from_utf8(value).ok())
    }

    /// The first field of that name (any case), if its value is text.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.headers(name).next()
    }

    /// The field of that name if there is exactly one and it is text. For fields that are no lists, where a
    /// second one makes both worthless.
    pub fn sole_header(&self, name: &str) -> Option<&'a str> {
        let mut found = self.named(name);
        let value = found.next()?;
        found.next().is_none().then_some(())?;
        std::str::from_utf8(value).ok()
    }

    /// True when the client will send another request on this connection (RFC 9112 §9.3).
    pub fn keep_alive(&self) -> bool {
        if !self.known.connection {
            return self.version == Version::Http11;
        }
        let says = |word: &str| {
            self.headers("Connection").flat_map(list_members).any(|member| member.eq_ignore_ascii_case(word))
        };
        match self.version {
            Version::Http11 => !says("close"),
            Version::Http10 => !says("close") && says("keep-alive"),
        }
    }

    /// User-Agent, empty if there is none.
    pub fn user_agent(&self) -> &'a str {
        self.known.user_agent.unwrap_or_default()
    }

    /// True for iPXE, whose needs differ: no 1xx, 204 or 304, and `+` in forms is a plus (`iPXE/1.21.1+ (g...)`).
    pub fn is_ipxe(&self) -> bool {
        self.is_ipxe
    }

    /// True for the HTTP client of UEFI firmware (`UefiHttpBoot/1.0`).
    pub fn is_uefi(&self) -> bool {
        self.user_agent().starts_with("UefiHttpBoot/")
    }

    /// Host and port the client believes it speaks to: the authority of an absolute target, else Host. Empty
    /// when the client gave none.
    pub fn host(&self) -> &'a str {
        self.authority.unwrap_or_else(|| std::str::from_utf8(self.known.host).unwrap_or_default())
    }

    /// True when a body is there and says it is a form (`application/x-www-form-urlencoded`), or says nothing.
    pub fn is_form(&self) -> bool {
        if self.body.is_empty() {
            return false;
        }
        let kind = self.header("Content-Type").unwrap_or("application/x-www-form-urlencoded");
        let kind = kind.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/x-www-form-urlencoded")
    }

    /// What a `+` means in this client's query and forms.
    pub fn plus(&self) -> form::Plus {
        if self.is_ipxe() { form::Plus::Plus } else { form::Plus::Blank }
    }

    /// The query's names and values.
    pub fn query_fields(&self) -> form::Fields<'a> {
        form::fields(self.query.unwrap_or_default().as_bytes(), self.plus())
    }

    /// The body's names and values if [`Request::is_form`], else none.
    pub fn form_fields(&self) -> form::Fields<'a> {
        form::fields(if self.is_form() { self.body } else { &[] }, self.plus())
    }
}

/// Looks at the front of a connection's unread bytes. Stateless: call it again with the same bytes and more.
///
/// Refusals come as early as they are certain: a first byte that starts no method, a bad request line when it
/// ends, a stray control byte where it stands, a head or a declared body over its bound before it has arrived.
pub fn next_request(bytes: &[u8]) -> Next<'_> {
    match parse(bytes) {
        Ok(Some((request, len))) => Next::Request { request, len },
        Ok(None) => Next::More,
        Err(reason) => Next::Refuse { status: reason.status(), reason },
    }
}

/// True when `bytes` hold a whole head that waits for `100 Continue` and none of its body yet. Only worth asking
/// after [`Next::More`]; never true for iPXE, which dies of a 1xx and never asks for one.
pub fn expects_continue(bytes: &[u8]) -> bool {
    let Ok(Some((request, framing))) = parse_head(bytes) else { return false };
    framing.body_len > 0
        && framing.head_len == bytes.len()
        && request.version == Version::Http11
        && !request.is_ipxe()
        && request.header("Expect").is_some()
}

/// Where head and body end.
#[derive(Clone, Copy)]
struct Framing {
    /// Empty lines and head.
    head_len: usize,
    body_len: usize,
}

fn parse(bytes: &[u8]) -> Result<Option<(Request<'_>, usize)>, RefuseReason> {
    let Some((mut request, framing)) = parse_head(bytes)? else { return Ok(None) };
    let len = framing.head_len + framing.body_len;
    let Some(body) = bytes.get(framing.head_len..len) else { return Ok(None) };
    request.body = body;
    Ok(Some((request, len)))
}

fn parse_head(bytes: &[u8]) -> Result<Option<(Request<'_>, Framing)>, RefuseReason> {
    let Some(skipped) = skip_empty_lines(bytes)? else { return Ok(None) };
    let rest = bytes.get(skipped..).unwrap_or_default();
    let window = rest.get(..HEAD_MAX).unwrap_or(rest);
    let Some(Scanned { line, lines, known, head_len }) = scan(window)? else { return Ok(None) };
    let target = line.target;
    let request = Request {
        method: line.method,
        method_token: line.method_token,
        target: line.target_text,
        path: target.path,
        query: target.query,
        version: line.version,
        body: &[],
        authority: target.authority,
        lines,
        known,
        is_ipxe: known.user_agent.is_some_and(|agent| agent.starts_with("iPXE/")),
    };
    check_host(&known, line.version)?;
    let body_len = if known.framing { body_len(&request)? } else { 0 };
    if known.expect
        && request.version == Version::Http11
        && request.named("Expect").any(|value| !value.eq_ignore_ascii_case(b"100-continue"))
    {
        return Err(RefuseReason::Expectation);
    }
    Ok(Some((request, Framing { head_len: skipped + head_len, body_len })))
}

/// Bytes of empty lines before the request; `None` while the end of an empty line is still to come.
fn skip_empty_lines(bytes: &[u8]) -> Result<Option<usize>, RefuseReason> {
    let mut skipped = 0;
    while let Some(rest) = bytes.get(skipped..) {
        match rest {
            [] | [b'\r'] => return Ok(None),
            [b'\r', b'\n', ..] if skipped / 2 < EMPTY_LINES_MAX => skipped += 2,
            [b'\r', b'\n', ..] => return Err(RefuseReason::RequestLine),
            [b'\r', ..] => return Err(RefuseReason::BareCr),
            [b'\n', ..] => return Err(RefuseReason::BareLf),
            _ => break,
        }
    }
    Ok(Some(skipped))
}

/// What [`scan`] found.
struct Scanned<'a> {
    line: RequestLine<'a>,
    /// The field lines, each with its CR LF.
    lines: &'a [u8],
    known: Known<'a>,
    /// Bytes of the head, its empty line included.
    head_len: usize,
}

/// Walks the head line by line and finds its end. No line ends without CR (RFC 9112 §2.2 lets a parser take a bare LF, and
/// another one on the way may not). What makes the whole head none comes before what is wrong with one of its fields.
fn scan(window: &[u8]) -> Result<Option<Scanned<'_>>, RefuseReason> {
    let (mut at, mut line_start) = (0, 0);
    let mut after_cr = false;
    let mut request_line = None;
    let (mut fields_start, mut field_count) = (0, 0);
    let mut known = Known::default();
    let mut all_are_fields = true;
    while let Some(rest) = window.get(at..).filter(|rest| !rest.is_empty()) {
        if at == line_start && request_line.is_some() && matches!(rest, [b' ' | b'\t', ..]) {
            return Err(RefuseReason::Fold);
        }
        let plain = plain_len(rest);
        at += plain;
        match rest.get(plain..).unwrap_or_default() {
            [] => {}
            [b'\r'] => {
                after_cr = true;
                break;
            }
            [b'\r', b'\n', ..] => {
                let (start, end) = (line_start, at);
                at += 2;
                line_start = at;
                match request_line {
                    None if end - start > REQUEST_LINE_MAX => return Err(RefuseReason::LineTooLong),
                    None => {
                        request_line = Some(RequestLine::parse(window.get(start..end).unwrap_or_default())?);
                        fields_start = at;
                    }
                    Some(_) if start == end && !all_are_fields => return Err(RefuseReason::Field),
                    Some(_) if start == end && field_count > FIELDS_MAX => {
                        return Err(RefuseReason::TooManyFields);
                    }
                    Some(line) if start == end => {
                        let lines = window.get(fields_start..start).unwrap_or_default();
                        return Ok(Some(Scanned { line, lines, known, head_len: at }));
                    }
                    Some(_) => {
                        field_count += 1;
                        match field(window.get(start..end).unwrap_or_default()) {
                            _ if field_count > FIELDS_MAX => {}
                            Some((name, value)) => known.note(name, value),
                            None => all_are_fields = false,
                        }
                    }
                }
            }
            [b'\r', ..] => return Err(RefuseReason::BareCr),
            [b'\n', ..] => return Err(RefuseReason::BareLf),
            [b'\t', ..] => at += 1,
            _ => return Err(RefuseReason::ControlByte),
        }
    }
    if request_line.is_some() {
        return if window.len() >= HEAD_MAX { Err(RefuseReason::HeadTooLarge) } else { Ok(None) };
    }
    // A TLS hello or a stray protocol on this port shows in its first bytes; nobody waits for its line to end.
    let method_len = class_len(window, TOKEN);
    match window.get(method_len) {
        _ if method_len > METHOD_MAX => Err(RefuseReason::MethodLength),
        Some(b' ') if method_len > 0 => {
            // The CR of a line that is exactly as long as allowed may be here already.
            let longest = REQUEST_LINE_MAX + usize::from(after_cr);
            if window.len() > longest { Err(RefuseReason::LineTooLong) } else { Ok(None) }
        }
        Some(b'\r') => Err(RefuseReason::RequestLine),
        Some(_) => Err(RefuseReason::MethodToken),
        None => Ok(None),
    }
}

/// Bytes before the first control character. Sixteen at a time, without a branch for each: every byte of every request
/// passes here.
fn plain_len(bytes: &[u8]) -> usize {
    const STEP: usize = 16;
    let is_plain = |byte: u8| byte >= b' ' && byte != 0x7f;
    let steps = bytes
        .chunks_exact(STEP)
        .take_while(|step| step.iter().fold(true, |plain, byte| plain & is_plain(*byte)))
        .count();
    let rest = bytes.get(steps * STEP..).unwrap_or_default();
    steps * STEP + rest.iter().take_while(|byte| is_plain(**byte)).count()
}

/// `METHOD TARGET VERSION`.
#[derive(Clone, Copy)]
struct RequestLine<'a> {
    method: Method,
    method_token: &'a str,
    target_text: &'a str,
    target: Target<'a>,
    version: Version,
}

impl<'a> RequestLine<'a> {
    fn parse(line: &'a [u8]) -> Result<Self, RefuseReason> {
        let method_len = class_len(line, TOKEN);
        if method_len > METHOD_MAX {
            return Err(RefuseReason::MethodLength);
        }
        if method_len == 0 || line.get(method_len).is_some_and(|byte| *byte != b' ') {
            return Err(RefuseReason::MethodToken);
        }
        let text = std::str::from_utf8(line).map_err(|_| RefuseReason::Target)?;
        // A blank behind the second one would be the version's, and no version has one.
        let parts = text.split_once(' ').and_then(|(method, rest)| Some((method, rest.split_once(' ')?)));
        let Some((method_token, (target_text, version))) = parts else {
            return Err(RefuseReason::RequestLine);
        };
        let version = parse_version(version.as_bytes())?;
        let method = match method_token {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            _ => Method::Other,
        };
        let target = Target::parse(method_token, target_text)?;
        Ok(Self { method, method_token, target_text, target, version })
    }
}

fn parse_version(text: &[u8]) -> Result<Version, RefuseReason> {
    match text {
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            match (major, minor) {
                (b'1', b'0') => Ok(Version::Http10),
                (b'1', _) => Ok(Version::Http11),
                _ => Err(RefuseReason::Version),
            }
        }
        _ => Err(RefuseReason::RequestLine),
    }
}

/// The parts of a request target (RFC 9112 §3.2).
#[derive(Clone, Copy)]
struct Target<'a> {
    authority: Option<&'a str>,
    path: &'a str,
    query: Option<&'a str>,
}

impl<'a> Target<'a> {
    fn parse(method: &str, text: &'a str) -> Result<Self, RefuseReason> {
        // Characters a URI may not hold but old iPXE builds and hand-written scripts send raw ("{", "|", ...) are
        // taken; a fragment never travels, and anything beyond ASCII must be percent-encoded.
        // Without a branch for each byte, as in `plain_len`.
        let fits = |byte: u8| byte.is_ascii_graphic() & (byte != b'#');
        if text.is_empty() || !text.bytes().fold(true, |all, byte| all & fits(byte)) {
            return Err(RefuseReason::Target);
        }
        if method == "CONNECT" {
            return Ok(Self { authority: Some(text), path: "", query: None });
        }
        if text == "*" && method == "OPTIONS" {
            return Ok(Self { authority: None, path: text, query: None });
        }
        if text.starts_with('/') {
            return Ok(Self::origin(None, text));
        }
        let (scheme, rest) = text.split_once("://").ok_or(RefuseReason::Target)?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(RefuseReason::Target);
        }
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.is_empty() || !is_host(authority) {
            return Err(RefuseReason::HostMalformed);
        }
        Ok(Self::origin(Some(authority), rest))
    }

    /// `rest` is empty or begins with `/` or `?`; an empty path means `/` (RFC 9110 §4.2.3).
    fn origin(authority: Option<&'a str>, rest: &'a str) -> Self {
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        Self { authority, path: if path.is_empty() { "/" } else { path }, query }
    }
}

/// RFC 9112 §3.2: exactly one Host in HTTP/1.1, at most one in 1.0, and it must be one.
fn check_host(known: &Known<'_>, version: Version) -> Result<(), RefuseReason> {
    match known.hosts {
        0 if version == Version::Http11 => Err(RefuseReason::HostMissing),
        0 => Ok(()),
        1 => match std::str::from_utf8(known.host) {
            Ok(host) if is_host(host) => Ok(()),
            _ => Err(RefuseReason::HostMalformed),
        },
        _ => Err(RefuseReason::HostTwice),
    }
}

/// `uri-host [":" port]` (RFC 9110 §7.2). Empty is allowed: a client whose URI has no authority says so.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else { return false };
            let literal = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
            if address.is_empty() || !address.bytes().all(literal) {
                return false;
            }
            ("", port)
        }
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port_fits = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.len() <= 5,
        None => port.is_empty(),
    };
    class_len(host.as_bytes(), HOST) == host.len() && port_fits
}

/// The length of the body by RFC 9112 §6, refused where it is in doubt or beyond the bound.
fn body_len(request: &Request<'_>) -> Result<usize, RefuseReason> {
    let mut declared: Option<u64> = None;
    let mut coded = false;
    let mut last_coding = "";
    let mut coding_count = 0;
    for (name, value) in request.pairs() {
        if name.eq_ignore_ascii_case(b"Content-Length") {
            let value = std::str::from_utf8(value).map_err(|_| RefuseReason::ContentLength)?;
            // "5, 5" is what some middlebox makes of two equal fields (RFC 9110 §8.6).
            for member in value.split(',').map(str::trim) {
                if member.is_empty() || !member.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(RefuseReason::ContentLength);
                }
                // More than 64 bits is a number all the same, only too large.
                let len = decimal(member).unwrap_or(u64::MAX);
                if declared.is_some_and(|before| before != len) {
                    return Err(RefuseReason::ContentLength);
                }
                declared = Some(len);
            }
        } else if name.eq_ignore_ascii_case(b"Transfer-Encoding") {
            let value = std::str::from_utf8(value).map_err(|_| RefuseReason::TransferEncoding)?;
            coded = true;
            for coding in list_members(value) {
                last_coding = coding;
                coding_count += 1;
            }
        }
    }
    if coded {
        let chunked = last_coding.eq_ignore_ascii_case("chunked");
        return Err(match (chunked, coding_count) {
            _ if declared.is_some() || request.version == Version::Http10 => RefuseReason::TransferEncoding,
            (false, _) => RefuseReason::TransferEncoding,
            (true, 1) => RefuseReason::Chunked,
            (true, _) => RefuseReason::TransferCoding,
        });
    }
    match usize::try_from(declared.unwrap_or(0)) {
        Ok(len) if len <= BODY_MAX => Ok(len),
        _ => Err(RefuseReason::BodyTooLarge),
    }
}
