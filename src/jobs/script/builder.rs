//! Script text that values cannot break out of.
//!
//! iPXE has no quoting and no escape character, so safety is a matter of types: raw text enters a script only as
//! a `&'static str`, and every value goes through the writer for the place where it stands. Each writer's
//! output is printable ASCII of bounded length without `${`, and ends no line.

use std::fmt::{self, Write};

use crate::jobs::job::JobId;
use crate::jobs::template::{Format, Template, Values};
use crate::jobs::token::{BootId, SignedToken};
use crate::wire::{MacAddr, Uuid};

/// Longest text on a screen line or in a comment.
const TEXT_MAX: usize = 120;
/// Longest single argument.
const ARG_MAX: usize = 255;
/// Longest list of kernel arguments. x86 Linux takes 2048 with ours in front.
const ARGS_MAX: usize = 1_600;
/// Longest name below an image's folder. Longer ones cannot be created on common file systems.
const URL_PART_MAX: usize = 1_024;
/// wimboot's EFI file names end at 31 characters.
pub(super) const WIMBOOT_NAME_MAX: usize = 31;

/// Appends to a script that belongs to the caller.
pub(super) struct Script<'o> {
    out: &'o mut String,
}

impl<'o> Script<'o> {
    /// Begins a script with the line every iPXE looks for.
    pub(super) fn begin(out: &'o mut String) -> Self {
        out.clear();
        out.push_str("#!ipxe\n");
        Self { out }
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.out.len()
    }

    /// Text of the house's own. The only way past the writers, and it takes no value.
    pub(super) fn raw(&mut self, text: &'static str) -> &mut Self {
        self.out.push_str(text);
        self
    }

    /// Ends the line.
    pub(super) fn end(&mut self) -> &mut Self {
        self.raw("\n")
    }

    /// Free text up to the end of the line, for `echo`, `item`, `menu` and comments: what a person reads.
    pub(super) fn text(&mut self, value: &str) -> &mut Self {
        self.words(value, TEXT_MAX, Words::Shown)
    }

    /// Kernel arguments as an operator wrote them. Words that iPXE would take for a separator or a comment have
    /// no spelling that iPXE leaves alone, and are left out.
    pub(super) fn args(&mut self, value: &str) -> &mut Self {
        self.words(value, ARGS_MAX, Words::Arguments)
    }

    /// One word made of a value: everything but letters, digits and `._-` becomes `_`, and it begins no option.
    pub(super) fn arg(&mut self, value: &str) -> &mut Self {
        let value = if value.is_empty() { "_" } else { value };
        for (index, c) in value.chars().take(ARG_MAX).enumerate() {
            let kept = c.is_ascii_alphanumeric() || matches!(c, '.' | '_') || c == '-' && index > 0;
            self.out.push(if kept { c } else { '_' });
        }
        self
    }

    /// The server's own base URL: what cannot stand in scheme, host, port and path is left out.
    pub(super) fn base(&mut self, base_url: &str) -> &mut Self {
        match is_clean_base(base_url) {
            true => self.out.push_str(base_url),
            false => self.out.extend(base_chars(base_url)),
        }
        self
    }

    /// The host of the server's own base URL, for another scheme: no port.
    pub(super) fn host(&mut self, base_url: &str) -> &mut Self {
        let base: String = base_chars(base_url).collect();
        let rest = base.split_once("://").map_or(base.as_str(), |(_, rest)| rest);
        let rest = rest.split('/').next().unwrap_or_default();
        let host = match rest.rfind(':') {
            Some(at) if !rest.ends_with(']') => rest.get(..at).unwrap_or_default(),
            _ => rest,
        };
        self.out.push_str(host);
        self
    }

    /// The operator's own lines, without the `#!ipxe` in front, their values already made harmless
    /// ([`Template::render`]). They end where they end: no backslash reaches the line behind.
    pub(super) fn template(&mut self, template: &Template, values: &Values<'_>) -> &mut Self {
        let start = self.out.len();
        template.render(Format::Script, values, self.out);
        let rendered = self.out.split_off(start);
        for line in rendered.lines().skip(1) {
            self.out.push_str(line.trim_end_matches('\r'));
            self.out.push('\n');
        }
        while self.out.ends_with("\\\n") {
            self.out.truncate(self.out.len() - 2);
            self.out.push('\n');
        }
        self
    }

    /// A path of a URL below what stands already: `/` stays, everything else outside RFC 3986's unreserved set is
    /// percent-encoded.
    pub(super) fn path(&mut self, value: &str) -> &mut Self {
        for byte in value.bytes().take(URL_PART_MAX) {
            if byte == b'/' { self.out.push('/') } else { push_encoded(self.out, byte) }
        }
        self
    }

    /// One segment of a path, or a query value: percent-encoded, `/` too.
    pub(super) fn segment(&mut self, value: &str) -> &mut Self {
        value.bytes().take(URL_PART_MAX).for_each(|byte| push_encoded(self.out, byte));
        self
    }

    /// A token.
    pub(super) fn token(&mut self, token: &SignedToken) -> &mut Self {
        self.out.push_str(token.as_str());
        self
    }

    /// A MAC address.
    pub(super) fn mac(&mut self, mac: MacAddr) -> &mut Self {
        self.plain(format_args!("{mac}"))
    }

    /// A UUID.
    pub(super) fn uuid(&mut self, uuid: Uuid) -> &mut Self {
        self.plain(format_args!("{uuid}"))
    }

    /// A job's number.
    pub(super) fn job(&mut self, job: JobId) -> &mut Self {
        self.plain(format_args!("{job}"))
    }

    /// A boot's number.
    pub(super) fn boot(&mut self, boot: BootId) -> &mut Self {
        self.plain(format_args!("{boot}"))
    }

    /// A number.
    pub(super) fn number(&mut self, number: u64) -> &mut Self {
        self.plain(format_args!("{number}"))
    }

    /// Whether `value` would lose words as kernel arguments.
    pub(super) fn args_are_changed(value: &str) -> bool {
        let mut out = String::new();
        Script { out: &mut out }.args(value);
        !(out.split(' ').eq(value.split_ascii_whitespace()) || out.is_empty() && value.trim().is_empty())
    }

    /// Only for types whose `Display` is letters, digits, `:` and `-`; private, so that stays true.
    fn plain(&mut self, value: fmt::Arguments<'_>) -> &mut Self {
        // Writing to a String cannot fail.
        let _ = self.out.write_fmt(value);
        self
    }

    fn words(&mut self, value: &str, max: usize, kind: Words) -> &mut Self {
        let start = self.out.len();
        let budget = |out: &String| max.saturating_sub(out.len() - start);
        // Every control character parts words: a line break in a value becomes a blank.
        let words = value.split(|c: char| c.is_ascii_control() || c == ' ').filter(|word| !word.is_empty());
        for word in words {
            let separator = matches!(word, "||" | "&&" | ";") || word.starts_with('#');
            if separator && kind == Words::Arguments {
                continue;
            }
            let first = self.out.len() == start;
            // Two for the blank and the quote, one for the word; an argument cut short means something else.
            let needed = if kind == Words::Arguments { word.len() + 1 } else { 3 };
            if budget(self.out) < needed {
                break;
            }
            if !first {
                self.out.push(' ');
            }
            // A quote in front takes a word out of iPXE's reach, and people read it as written.
            if separator || (kind == Words::Shown && first && word.starts_with(['-', ':'])) {
                self.out.push('\'');
            }
            let mut last = ' ';
            for c in word.chars() {
                if budget(self.out) == 0 {
                    break;
                }
                let shown = match c {
                    '{' if last == '$' => '(',
                    ' '..='~' => c,
                    _ => '?',
                };
                self.out.push(shown);
                last = shown;
            }
        }
        // A backslash before the line's end would join the next line to this one.
        while self.out.len() > start && self.out.ends_with('\\') {
            self.out.pop();
            self.out.push('/');
        }
        self
    }
}

fn may_stand_in_base(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, ':' | '/' | '.' | '-' | '_' | '[' | ']')
}

/// True when [`base_chars`] would give the same text back.
fn is_clean_base(base_url: &str) -> bool {
    base_url.len() <= ARG_MAX && !base_url.ends_with('/') && base_url.chars().all(may_stand_in_base)
}

fn base_chars(base_url: &str) -> impl Iterator<Item = char> + '_ {
    base_url.trim_end_matches('/').chars().filter(|c| may_stand_in_base(*c)).take(ARG_MAX)
}

/// A base URL as scripts carry it: nothing but what can stand in scheme, host, port and path.
pub(in crate::jobs) fn clean_base(base_url: &str) -> String {
    base_chars(base_url).collect()
}

/// Appends one byte of a URL, percent-encoded unless RFC 3986 calls it unreserved.
pub(in crate::jobs) fn push_encoded(out: &mut String, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
        out.push(byte as char);
    } else {
        out.push('%');
        out.push(HEX[usize::from(byte >> 4)] as char);
        out.push(HEX[usize::from(byte & 15)] as char);
    }
}

/// What words become.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Words {
    /// Text on a screen: nothing is left out.
    Shown,
    /// Arguments: whole words or none.
    Arguments,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Script<'_>)) -> String {
        let mut out = String::new();
        write(&mut Script { out: &mut out });
        out
    }

    #[test]
    fn text_stays_readable_and_harmless() {
        for (value, shown) in [
            ("Windows 11 PE (x64)", "Windows 11 PE (x64)"),
            ("a  b\tc\nshell", "a b c shell"),
            ("${net0/mac} $${x} $", "$(net0/mac} $$(x} $"),
            ("a || b && c ; d", "a '|| b '&& c '; d"),
            ("#1 a#b", "'#1 a#b"),
            ("--name x -y", "'--name x -y"),
            (":label", "':label"),
            ("C:\\", "C:/"),
            ("caf\u{e9} \u{1f642}", "caf? ?"),
            ("", ""),
        ] {
            assert_eq!(written(|s| _ = s.text(value)), shown, "{value:?}");
        }
    }

    #[test]
    fn arguments_keep_every_word_ipxe_can_carry() {
        for (value, args) in [
            ("quiet console=ttyS0,115200n8 -- single", "quiet console=ttyS0,115200n8 -- single"),
            ("a || b # c ; d&&e", "a b c d&&e"),
            ("ip=${net0/ip}", "ip=$(net0/ip}"),
        ] {
            assert_eq!(written(|s| _ = s.args(value)), args, "{value:?}");
        }
        assert!(!Script::args_are_changed("quiet   splash"));
        assert!(!Script::args_are_changed("  "));
        assert!(Script::args_are_changed("quiet # splash"));
        assert!(Script::args_are_changed("ip=${net0/ip}"));
    }

    #[test]
    fn an_argument_is_one_word_that_is_no_option() {
        for (value, arg) in
            [("boot.wim", "boot.wim"), ("-x", "_x"), ("a b\n;", "a_b__"), ("", "_"), ("${x}", "__x_")]
        {
            assert_eq!(written(|s| _ = s.arg(value)), arg, "{value:?}");
        }
    }

    #[test]
    fn urls_are_percent_encoded() {
        assert_eq!(written(|s| _ = s.path("a b/\u{e9}#?.wim")), "a%20b/%C3%A9%23%3F.wim");
        assert_eq!(written(|s| _ = s.segment("a/${b}")), "a%2F%24%7Bb%7D");
        assert_eq!(written(|s| _ = s.base("http://10.77.0.1:4433/ ||\n${x}")), "http://10.77.0.1:4433/x");
        assert_eq!(written(|s| _ = s.base("http://10.77.0.1:4433/")), "http://10.77.0.1:4433");
    }

    #[test]
    fn every_writer_is_bounded() {
        for unit in ["a", "a ", "\u{e9}", "# ", "${"] {
            let long = unit.repeat(100_000);
            assert!(written(|s| _ = s.text(&long)).len() <= TEXT_MAX);
            assert!(written(|s| _ = s.args(&long)).len() <= ARGS_MAX);
            assert!(written(|s| _ = s.arg(&long)).len() <= ARG_MAX);
            assert!(written(|s| _ = s.base(&long)).len() <= ARG_MAX);
            assert!(written(|s| _ = s.path(&long)).len() <= 3 * URL_PART_MAX);
        }
    }
}
