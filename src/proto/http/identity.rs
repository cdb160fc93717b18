//! Who a script request says it comes from.

use std::borrow::Cow;

use crate::jobs::Identity;
use crate::jobs::script::LocalStrategy;
use crate::wire::Arch;
use crate::wire::arch::Platform;
use crate::wire::http::{Field, Request};

/// The longest identity text taken, bytes. SMBIOS strings end at 64 by custom; a longer one is left out.
pub const IDENTITY_TEXT_MAX: usize = 256;

/// Collects the identity fields of a request: from its query, then from its form. A field given twice counts the
/// first time it makes sense. All of it is the client's claim.
///
/// Taken are `mac uuid serial asset manufacturer product arch platform buildarch` and `longmode` (or `cpuid`), in
/// any case. `arch` may be option 93 as a number (`7`, `0x0007`, `00:07`, as iPXE's setting types print it) or a
/// word, which then counts as `buildarch`. A MAC address no machine can own is left out.
pub fn identity(request: &Request<'_>) -> Identity {
    let mut identity = Identity::default();
    for field in request.query_fields().chain(request.form_fields()) {
        take(&mut identity, field);
    }
    identity
}

/// The `reason` of a call-back, from its query, then from its form: one line of at most `max` characters.
pub fn reason(request: &Request<'_>, max: usize) -> String {
    let text = request
        .query_fields()
        .chain(request.form_fields())
        .find(|field| field.name.is("reason"))
        .and_then(|field| field.value.text(IDENTITY_TEXT_MAX));
    match text {
        Some(text) => text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(max).collect(),
        None => "no reason given".to_owned(),
    }
}

/// The way of leaving for the local disk that a script reports.
pub fn strategy(request: &Request<'_>) -> Option<LocalStrategy> {
    let field = request.query_fields().find(|field| field.name.is("strategy"))?;
    LocalStrategy::of_word(&field.value.text(IDENTITY_TEXT_MAX)?)
}

fn take(identity: &mut Identity, Field { name, value }: Field<'_>) {
    let word = || value.text(IDENTITY_TEXT_MAX);
    let text = || word().map(Cow::into_owned);
    if name.is("mac") {
        fill(&mut identity.mac, || {
            word()?.parse().ok().filter(|mac: &crate::wire::MacAddr| !mac.is_zero() && !mac.is_group())
        });
    } else if name.is("uuid") {
        fill(&mut identity.uuid, || word()?.parse().ok());
    } else if name.is("serial") {
        fill(&mut identity.serial, text);
    } else if name.is("asset") {
        fill(&mut identity.asset, text);
    } else if name.is("manufacturer") {
        fill(&mut identity.manufacturer, text);
    } else if name.is("product") {
        fill(&mut identity.product, text);
    } else if name.is("platform") {
        fill(&mut identity.platform, || platform(&word()?));
    } else if name.is("buildarch") {
        fill(&mut identity.build_arch, text);
    } else if name.is("arch") {
        let Some(word) = word() else { return };
        match arch_number(&word) {
            Some(arch) => fill(&mut identity.arch, || Some(arch)),
            None => fill(&mut identity.build_arch, || Some(word.into_owned())),
        }
    } else if name.is("longmode") || name.is("cpuid") {
        fill(&mut identity.long_mode, || truth(&word()?));
    }
}

/// Keeps the first value that makes sense.
fn fill<T>(slot: &mut Option<T>, value: impl FnOnce() -> Option<T>) {
    if slot.is_none() {
        *slot = value();
    }
}

fn platform(word: &str) -> Option<Platform> {
    let known = [
        (Platform::Bios, ["pcbios", "bios"]),
        (Platform::Efi, ["efi", "uefi"]),
        (Platform::Other, ["linux", "sbi"]),
    ];
    let is_one =
        |(_, words): &(Platform, [&str; 2])| words.iter().any(|known| known.eq_ignore_ascii_case(word));
    known.into_iter().find(is_one).map(|(platform, _)| platform)
}

/// Option 93 as iPXE prints it: `int16` decimal, `uint16` with `0x`, `hex` with a colon.
fn arch_number(text: &str) -> Option<Arch> {
    let hex = |digits: &str| {
        let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        (plain && !digits.is_empty()).then(|| u16::from_str_radix(digits, 16).ok())?
    };
    if let Some((high, low)) = text.split_once(':') {
        let fits = high.len() == 2 && low.len() == 2;
        return fits.then(|| Some(Arch(hex(high)? << 8 | hex(low)?)))?;
    }
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return hex(digits).map(Arch);
    }
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok().map(Arch))?
}

fn truth(word: &str) -> Option<bool> {
    let is_one = |words: &[&str]| words.iter().any(|known| known.eq_ignore_ascii_case(word));
    match word {
        _ if is_one(&["1", "yes", "true", "on", "lm", "64"]) => Some(true),
        _ if is_one(&["0", "no", "false", "off", "32"]) => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::http::{Next, next_request};

    fn of(raw: &str) -> Identity {
        match next_request(raw.as_bytes()) {
            Next::Request { request, .. } => identity(&request),
            other => panic!("{raw}: {other:?}"),
        }
    }

    fn query(agent: &str, query: &str) -> Identity {
        of(&format!("GET /ipxe?{query} HTTP/1.1\r\nHost: h\r\nUser-Agent: {agent}\r\n\r\n"))
    }

    #[test]
    fn the_constant_scripts_query_fills_every_field() {
        let found = query(
            "iPXE/1.21.1",
            "mac=52%3A54%3A00%3A12%3A34%3A56&uuid=4c4c4544-0042-3510-8052-b4c04f564231&serial=B5R+VB1\
             &asset=A%2042&manufacturer=Dell%20Inc.&product=OptiPlex%207010&arch=7&platform=efi\
             &buildarch=x86_64&longmode=1",
        );
        assert_eq!(found.mac, "52:54:00:12:34:56".parse().ok());
        assert_eq!(found.uuid, "4c4c4544-0042-3510-8052-b4c04f564231".parse().ok());
        assert_eq!(found.serial.as_deref(), Some("B5R+VB1"));
        assert_eq!(found.asset.as_deref(), Some("A 42"));
        assert_eq!(found.manufacturer.as_deref(), Some("Dell Inc."));
        assert_eq!(found.product.as_deref(), Some("OptiPlex 7010"));
        assert_eq!(found.arch, Some(Arch::UEFI_X64));
        assert_eq!(found.platform, Some(Platform::Efi));
        assert_eq!(found.build_arch.as_deref(), Some("x86_64"));
        assert_eq!(found.long_mode, Some(true));
        assert_eq!(found.address, None);
    }

    #[test]
    fn a_form_fills_what_the_query_left_open() {
        let body = "mac=52:54:00:00:00:02&serial=X%2BY+Z&platform=pcbios";
        let form = |agent: &str, kind: &str| {
            of(&format!(
                "POST /ipxe?mac=52:54:00:00:00:01 HTTP/1.1\r\nHost: h\r\nUser-Agent: {agent}\r\n\
                 Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ))
        };
        let found = form("iPXE/1.0.0+", "application/x-www-form-urlencoded");
        assert_eq!(found.mac, "52:54:00:00:00:01".parse().ok());
        assert_eq!(found.serial.as_deref(), Some("X+Y+Z"));
        assert_eq!(found.platform, Some(Platform::Bios));
        let found = form("curl/8", "Application/X-WWW-Form-Urlencoded; charset=utf-8");
        assert_eq!(found.serial.as_deref(), Some("X+Y Z"));
        assert_eq!(form("curl/8", "application/json").serial, None);
    }

    #[test]
    fn arch_is_a_number_in_any_print_or_a_word() {
        for (text, want) in [
            ("7", Some(7)),
            ("0", Some(0)),
            ("00007", Some(7)),
            ("0x0007", Some(7)),
            ("0X10", Some(16)),
            ("00:0b", Some(11)),
            ("00%3A0b", Some(11)),
            ("65535", Some(65535)),
            ("65536", None),
            ("0x", None),
            ("0x+7", None),
            ("0:7", None),
            ("x86_64", None),
        ] {
            assert_eq!(query("iPXE/1", &format!("arch={text}")).arch, want.map(Arch), "{text}");
        }
        assert_eq!(query("iPXE/1", "arch=x86_64").build_arch.as_deref(), Some("x86_64"));
        let both = query("iPXE/1", "buildarch=i386&arch=x86_64&arch=7");
        assert_eq!((both.build_arch.as_deref(), both.arch), (Some("i386"), Some(Arch(7))));
    }

    #[test]
    fn hostile_and_worthless_values_are_left_out() {
        let long = "x".repeat(IDENTITY_TEXT_MAX + 1);
        let text =
            format!("serial={long}&asset=&product=%00%0d%0a&mac=zz&uuid=1&platform=vax&arch=&cpuid=maybe");
        assert_eq!(query("iPXE/1", &text), Identity::default());
        assert_eq!(query("iPXE/1", "mac=00:00:00:00:00:00").mac, None);
        assert_eq!(query("iPXE/1", "mac=ff:ff:ff:ff:ff:ff").mac, None);
        assert_eq!(query("iPXE/1", "mac=&mac=52-54-00-00-00-01").mac, "52:54:00:00:00:01".parse().ok());
        let limit = "y".repeat(IDENTITY_TEXT_MAX);
        assert_eq!(query("iPXE/1", &format!("SERIAL={limit}")).serial, Some(limit));
        assert_eq!(query("iPXE/1", "serial=a%0ab%00c").serial.as_deref(), Some("abc"));
    }

    #[test]
    fn long_mode_has_two_names_and_few_words() {
        assert_eq!(query("iPXE/1", "cpuid=64").long_mode, Some(true));
        assert_eq!(query("iPXE/1", "longmode=no").long_mode, Some(false));
        assert_eq!(query("iPXE/1", "").long_mode, None);
    }
}
