//! Texts of the operator's with places for what the server knows of one boot: `{{mac}}`, `{{serial:url}}`.
//!
//! Not iPXE's `${...}`, which stays what it is: iPXE fills that in on the machine. A template is read once, when its
//! folder is scanned, so that a variable nobody knows is said there and not by a machine in a rack. What a value may
//! hold depends on where it lands, its [`Format`]: the operator's text is taken as it is, a value never says anything
//! but itself. `{{{{` stands for a literal `{{`.

use std::fmt::{self, Write};
use std::net::Ipv4Addr;

use super::Identity;
use super::job::JobId;
use super::token::{BootId, SignedToken, Token, TokenKey};
use crate::wire::arch::{Cpu, Platform};
use crate::wire::{MacAddr, Uuid};

/// Longest template, bytes.
pub const TEMPLATE_LEN_MAX: usize = 64 * 1024;
/// Most variables in one.
pub const VARIABLES_MAX: usize = 256;
/// Longest value, in characters; what is longer is cut.
const VALUE_LEN_MAX: usize = 255;

/// What a value may hold where it lands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// An iPXE script: one word of letters, digits and `._-` that is no option; what else there was becomes `_`.
    Script,
    /// XML, text or attribute: escaped (`unattend.xml`).
    Xml,
    /// JSON, and YAML between double quotes: escaped as in a JSON string.
    Json,
    /// Anything else, where quoting is anybody's guess (preseed, kickstart, shell, batch): letters, digits, blanks and
    /// `._:/@+,-`, and no dash in front; what else there was becomes `_`.
    Plain,
}

impl Format {
    /// By the end of a file's name.
    pub fn of_name(name: &str) -> Self {
        let name = name.to_ascii_lowercase();
        let name = name.strip_suffix(".tmpl").unwrap_or(&name);
        match name.rsplit_once('.').map_or("", |(_, end)| end) {
            "xml" => Self::Xml,
            "json" | "yaml" | "yml" | "ign" => Self::Json,
            "ipxe" => Self::Script,
            _ => Self::Plain,
        }
    }
}

/// What can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Variable {
    Mac,
    Uuid,
    Serial,
    Asset,
    Manufacturer,
    Product,
    Hostname,
    Address,
    Platform,
    Arch,
    Job,
    Boot,
    Image,
    Base,
    BootUrl,
    Files,
    Answers,
}

/// Every variable by name.
const VARIABLES: [(&str, Variable); 17] = [
    ("mac", Variable::Mac),
    ("uuid", Variable::Uuid),
    ("serial", Variable::Serial),
    ("asset", Variable::Asset),
    ("manufacturer", Variable::Manufacturer),
    ("product", Variable::Product),
    ("hostname", Variable::Hostname),
    ("address", Variable::Address),
    ("platform", Variable::Platform),
    ("arch", Variable::Arch),
    ("job", Variable::Job),
    ("boot", Variable::Boot),
    ("image", Variable::Image),
    ("base", Variable::Base),
    ("boot_url", Variable::BootUrl),
    ("files", Variable::Files),
    ("answers", Variable::Answers),
];

/// How a value is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// As the format says.
    Normal,
    /// Percent-encoded, for a URL.
    Url,
    /// A MAC address or UUID without separators.
    Bare,
    /// A MAC address with dashes.
    Dashes,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Piece {
    Text(String),
    Value(Variable, Form),
}

/// A template, read and checked.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Template {
    pieces: Vec<Piece>,
}

impl fmt::Debug for Template {
    /// An answer file holds passwords; logs get its shape only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.pieces.iter().filter(|piece| matches!(piece, Piece::Value(..))).count();
        write!(f, "Template({count} variables)")
    }
}

/// Why a text is no template.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadTemplate {
    /// Counted from 1.
    pub line: usize,
    /// In plain words.
    pub reason: String,
}

impl fmt::Display for BadTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl std::error::Error for BadTemplate {}

/// What the server knows of one boot.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// The machine, as it says itself.
    pub who: &'a Identity,
    /// The name it is to have, if anyone has said.
    pub hostname: Option<&'a str>,
    /// The job that decided.
    pub job: Option<JobId>,
    /// The boot's number.
    pub boot: BootId,
    /// The image's name.
    pub image: &'a str,
    /// Where the machine reaches the server: scheme, literal host, port.
    pub base_url: &'a str,
    /// What the boot's own URLs carry.
    pub token: &'a SignedToken,
}

impl Template {
    /// Reads a text.
    ///
    /// # Errors
    /// [`BadTemplate`] for a variable nobody knows, a `{{` without its `}}`, a NUL, or a text or list that is too long.
    pub fn parse(text: &str) -> Result<Self, BadTemplate> {
        let bad = |at: usize, reason: String| {
            let before = text.get(..at).unwrap_or_default();
            BadTemplate { line: before.matches('\n').count() + 1, reason }
        };
        if text.len() > TEMPLATE_LEN_MAX {
            return Err(bad(0, format!("{} bytes, at most {TEMPLATE_LEN_MAX} can be used", text.len())));
        }
        if let Some(at) = text.find('\0') {
            return Err(bad(at, "a NUL byte".into()));
        }
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut variables = 0;
        let mut at = 0;
        while let Some(open) = text[at..].find("{{") {
            literal.push_str(&text[at..at + open]);
            let inside = at + open + 2;
            if text[inside..].starts_with("{{") {
                literal.push_str("{{");
                at = inside + 2;
                continue;
            }
            let rest = &text[inside..];
            let line = rest.split('\n').next().unwrap_or_default();
            let Some(close) = line.find("}}") else {
                return Err(bad(inside, "{{ without }} on its line (write {{{{ for a literal {{)".into()));
            };
            let (variable, form) = variable(rest[..close].trim()).map_err(|reason| bad(inside, reason))?;
            variables += 1;
            if variables > VARIABLES_MAX {
                return Err(bad(inside, format!("more than {VARIABLES_MAX} variables")));
            }
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Value(variable, form));
            at = inside + close + 2;
        }
        literal.push_str(&text[at..]);
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        Ok(Self { pieces })
    }

    /// The names of the variables it uses, in order.
    pub fn variables(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Value(variable, _) => VARIABLES.iter().find(|(_, v)| v == variable).map(|(name, _)| *name),
        })
    }

    /// At least as many bytes as [`render`](Self::render) appends.
    pub fn rendered_len_max(&self) -> usize {
        let of = |piece: &Piece| match piece {
            Piece::Text(text) => text.len(),
            // Every character at its longest: a percent-encoded one of four bytes.
            Piece::Value(..) => 12 * VALUE_LEN_MAX,
        };
        self.pieces.iter().map(of).sum()
    }

    /// Appends the text with every value in its place. A value that is not known is `_` in a script, where a missing
    /// word would shift the others, and empty elsewhere.
    pub fn render(&self, format: Format, values: &Values<'_>, out: &mut String) {
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Value(variable, form) => {
                    let value = values.value(*variable, *form);
                    match (form, &value) {
                        (Form::Url, Value::Own(text)) => {
                            text.bytes().for_each(|b| super::script::push_encoded(out, b))
                        }
                        (Form::Url, Value::Claimed(text)) => {
                            let text = text.chars().take(VALUE_LEN_MAX);
                            let mut buffer = [0; 4];
                            text.for_each(|c| {
                                c.encode_utf8(&mut buffer)
                                    .bytes()
                                    .for_each(|b| super::script::push_encoded(out, b));
                            });
                        }
                        (_, Value::Own(text)) => out.push_str(text),
                        (_, Value::Claimed(text)) => write_claimed(text, format, out),
                    }
                }
            }
        }
    }
}

fn variable(text: &str) -> Result<(Variable, Form), String> {
    let (name, form) = text.split_once(':').unwrap_or((text, ""));
    let Some((_, variable)) = VARIABLES.iter().find(|(known, _)| *known == name) else {
        let known: Vec<_> = VARIABLES.iter().map(|(name, _)| *name).collect();
        return Err(format!("{:?} is no variable; there are {}", printable(name), known.join(", ")));
    };
    let form = match (form, variable) {
        ("", _) => Form::Normal,
        ("url", _) => Form::Url,
        ("bare", Variable::Mac | Variable::Uuid) => Form::Bare,
        ("dashes", Variable::Mac) => Form::Dashes,
        _ => return Err(format!("{name} has no form {:?}", printable(form))),
    };
    Ok((*variable, form))
}

fn printable(text: &str) -> String {
    text.chars().take(40).collect()
}

/// A value, by who made it.
enum Value<'a> {
    /// By the server: letters, digits and `:/.-_[]`.
    Own(String),
    /// By a client or an operator.
    Claimed(&'a str),
}

impl<'a> Values<'a> {
    fn value(&self, variable: Variable, form: Form) -> Value<'a> {
        let claimed = |text: Option<&'a str>| Value::Claimed(text.unwrap_or_default());
        let mac = |mac: MacAddr| match form {
            Form::Bare => mac.to_string().replace(':', ""),
            Form::Dashes => mac.to_string().replace(':', "-"),
            Form::Normal | Form::Url => mac.to_string(),
        };
        let uuid = |uuid: Uuid| match form {
            Form::Bare => uuid.to_string().replace('-', ""),
            _ => uuid.to_string(),
        };
        let own = |text: Option<String>| match text {
            Some(text) => Value::Own(text),
            None => Value::Claimed(""),
        };
        let who = self.who;
        match variable {
            Variable::Mac => own(who.mac.map(mac)),
            Variable::Uuid => own(who.uuid.map(uuid)),
            Variable::Serial => claimed(who.serial.as_deref()),
            Variable::Asset => claimed(who.asset.as_deref()),
            Variable::Manufacturer => claimed(who.manufacturer.as_deref()),
            Variable::Product => claimed(who.product.as_deref()),
            Variable::Hostname => claimed(self.hostname),
            Variable::Address => own(who.address.as_ref().map(Ipv4Addr::to_string)),
            Variable::Platform => claimed(who.firmware().map(|platform| match platform {
                Platform::Bios => "pcbios",
                Platform::Efi => "efi",
                Platform::Other => "other",
            })),
            Variable::Arch => claimed(who.cpu().map(|cpu| match cpu {
                Cpu::X86 => "x86",
                Cpu::X64 => "x64",
                Cpu::Arm32 => "arm32",
                Cpu::Arm64 => "arm64",
                Cpu::Other => "other",
            })),
            Variable::Job => own(self.job.map(|job| job.to_string())),
            Variable::Boot => own(Some(self.boot.to_string())),
            Variable::Image => Value::Claimed(self.image),
            Variable::Base => own(Some(super::script::clean_base(self.base_url))),
            Variable::BootUrl => own(Some(self.boot_url())),
            Variable::Files => own(Some(self.below("/images/"))),
            Variable::Answers => own(Some(self.below("/answers/"))),
        }
    }

    fn below(&self, folder: &str) -> String {
        let mut url = self.boot_url() + folder;
        self.image.bytes().for_each(|byte| super::script::push_encoded(&mut url, byte));
        url
    }

    fn boot_url(&self) -> String {
        format!("{}/s/{}", super::script::clean_base(self.base_url), self.token.as_str())
    }
}

fn write_claimed(text: &str, format: Format, out: &mut String) {
    let text = text.chars().take(VALUE_LEN_MAX);
    match format {
        Format::Script => {
            let start = out.len();
            for c in text {
                let kept =
                    c.is_ascii_alphanumeric() || matches!(c, '.' | '_') || c == '-' && out.len() > start;
                out.push(if kept { c } else { '_' });
            }
            if out.len() == start {
                out.push('_');
            }
        }
        Format::Plain => {
            let start = out.len();
            for c in text {
                let kept = c.is_ascii_alphanumeric()
                    || matches!(c, ' ' | '.' | '_' | ':' | '/' | '@' | '+' | ',')
                    || c == '-' && out.len() > start;
                out.push(if kept { c } else { '_' });
            }
        }
        Format::Xml => {
            for c in text {
                match c {
                    '&' => out.push_str("&amp;"),
                    '<' => out.push_str("&lt;"),
                    '>' => out.push_str("&gt;"),
                    '"' => out.push_str("&quot;"),
                    '\'' => out.push_str("&apos;"),
                    // XML 1.0 has no spelling for these at all.
                    c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push(' '),
                    c => out.push(c),
                }
            }
        }
        Format::Json => {
            for c in text {
                match c {
                    '"' | '\\' => out.extend(['\\', c]),
                    // Between YAML's double quotes too, where NEL and the line separators end lines.
                    c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                        // Writing to a String cannot fail.
                        let _ = write!(out, "\\u{:04x}", u32::from(c));
                    }
                    c => out.push(c),
                }
            }
        }
    }
}

/// Takes any text as a template, and renders it in every format for a machine whose every field is that text. For fuzz
/// targets and the mutation tests. Panics only when an invariant of this module is broken.
pub fn fuzz_template(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(template) = Template::parse(&text) else { return };
    let claimed = || Some(text.chars().take(80).collect::<String>());
    let who = Identity {
        mac: bytes.first_chunk().map(|mac| MacAddr(*mac)),
        uuid: bytes.first_chunk().map(|uuid| Uuid::from_smbios(*uuid)),
        serial: claimed(),
        asset: claimed(),
        manufacturer: claimed(),
        product: claimed(),
        build_arch: claimed(),
        ..Identity::default()
    };
    let token =
        Token { boot: BootId(7), mac: who.mac, job: Some(JobId(3)), menu: false, last: 0, expires_unix: 9 };
    let hostname = claimed();
    let values = Values {
        who: &who,
        hostname: hostname.as_deref(),
        job: Some(JobId(3)),
        boot: BootId(7),
        image: "win 11",
        base_url: "http://10.0.0.1:4433/",
        token: &TokenKey::new([1; 32]).sign(&token),
    };
    for format in [Format::Script, Format::Xml, Format::Json, Format::Plain] {
        let mut out = String::new();
        template.render(format, &values, &mut out);
        assert!(out.len() <= template.rendered_len_max());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(text: &str, format: Format, serial: &str) -> String {
        let who = Identity {
            mac: Some(MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0xab])),
            serial: Some(serial.into()),
            platform: Some(Platform::Efi),
            ..Identity::default()
        };
        let token = Token {
            boot: BootId(7),
            mac: who.mac,
            job: Some(JobId(3)),
            menu: false,
            last: 0,
            expires_unix: 9,
        };
        let values = Values {
            who: &who,
            hostname: None,
            job: Some(JobId(3)),
            boot: BootId(7),
            image: "win 11",
            base_url: "http://10.0.0.1:4433/",
            token: &TokenKey::new([1; 32]).sign(&token),
        };
        let template = Template::parse(text).unwrap();
        let mut out = String::new();
        template.render(format, &values, &mut out);
        assert!(out.len() <= template.rendered_len_max());
        out
    }

    #[test]
    fn every_variable_is_filled_in() {
        let shown = rendered("{{mac}} {{ mac:bare }} {{mac:dashes}} {{mac:url}}", Format::Plain, "");
        assert_eq!(shown, "52:54:00:12:34:ab 5254001234ab 52-54-00-12-34-ab 52%3A54%3A00%3A12%3A34%3Aab");
        let shown = rendered("{{job}} {{boot}} {{image}} {{base}} {{platform}}", Format::Plain, "");
        assert_eq!(shown, "j3 b0000000000000007 win 11 http://10.0.0.1:4433 efi");
        let shown = rendered("{{files}}/x {{answers}}/y {{boot_url}}", Format::Plain, "");
        assert!(
            shown.starts_with("http://10.0.0.1:4433/s/") && shown.contains("/images/win%2011/x "),
            "{shown}"
        );
        assert!(shown.contains("/answers/win%2011/y "), "{shown}");
        assert_eq!(rendered("a{{uuid}}b{{hostname}}c", Format::Plain, ""), "abc");
        assert_eq!(rendered("a {{uuid}} b", Format::Script, ""), "a _ b");
        for (name, _) in VARIABLES {
            assert_eq!(Template::parse(&format!("{{{{{name}}}}}")).unwrap().variables().next(), Some(name));
        }
    }

    #[test]
    fn a_literal_pair_of_braces_and_what_ipxe_fills_in_stay() {
        assert_eq!(rendered("${net0/mac} {{{{x}} {a} }}", Format::Script, ""), "${net0/mac} {{x}} {a} }}");
    }

    #[test]
    fn mistakes_name_the_line() {
        for (text, line, word) in [
            ("a\nb {{serail}}", 2, "serail"),
            ("{{mac", 1, "without"),
            ("{{mac\n}}", 1, "without"),
            ("\n\n{{}}", 3, "no variable"),
            ("{{mac:shout}}", 1, "no form"),
            ("{{serial:bare}}", 1, "no form"),
            ("\na\0b", 2, "NUL"),
        ] {
            let bad = Template::parse(text).unwrap_err();
            assert_eq!(bad.line, line, "{text:?}: {bad}");
            assert!(bad.reason.contains(word), "{text:?}: {bad}");
        }
        assert!(Template::parse(&"x".repeat(TEMPLATE_LEN_MAX + 1)).is_err());
        assert!(Template::parse(&"{{mac}}".repeat(VARIABLES_MAX + 1)).is_err());
    }

    #[test]
    fn a_value_says_nothing_but_itself_in_any_format() {
        for c in (0..=0x2fff).filter_map(char::from_u32) {
            let value = format!("a{c}b");
            let script = rendered("{{serial}}", Format::Script, &value);
            assert!(script.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)), "{value:?}");
            let plain = rendered("{{serial}}", Format::Plain, &value);
            assert!(!plain.contains([
                '"', '\'', '\\', '$', '`', '\n', '\r', ';', '|', '&', '<', '>', '%', '#', '=', '^'
            ]));
            let xml = format!("<a b=\"{0}\">{0}</a>", rendered("{{serial}}", Format::Xml, &value));
            let tree = roxmltree::Document::parse(&xml).unwrap_or_else(|e| panic!("{value:?}: {e}"));
            let shown = if c.is_control() || c == '\u{fffe}' { "a b".to_owned() } else { value.clone() };
            assert_eq!(tree.root_element().text(), Some(shown.as_str()));
            let json = format!("\"{}\"", rendered("{{serial}}", Format::Json, &value));
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), value);
            assert!(!json.contains('\n'));
            let url = rendered("{{serial:url}}", Format::Script, &value);
            assert!(url.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b)), "{url}");
        }
        assert_eq!(rendered("{{serial}}", Format::Script, "-x"), "_x");
        assert_eq!(rendered("{{serial}}", Format::Plain, "--x"), "_-x");
        assert_eq!(rendered("{{serial}}", Format::Plain, &"y".repeat(10_000)).len(), VALUE_LEN_MAX);
    }

    #[test]
    fn formats_go_by_the_name() {
        for (name, format) in [
            ("unattend.xml", Format::Xml),
            ("Autounattend.XML.tmpl", Format::Xml),
            ("user-data.yaml", Format::Json),
            ("config.ign", Format::Json),
            ("preseed.cfg", Format::Plain),
            ("ks", Format::Plain),
            ("boot.ipxe.tmpl", Format::Script),
        ] {
            assert_eq!(Format::of_name(name), format, "{name}");
        }
    }
}
