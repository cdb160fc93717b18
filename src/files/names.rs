//! Names as clients send them, made comparable and safe.
//!
//! Windows boot managers mix slashes, backslashes and case (`\Boot\BCD`, `/boot\fonts\...`), shim sends double
//! slashes, firmware may or may not send a leading one. All of that is the same name; a name that tries to leave is
//! no name at all.

/// Longest name looked at, in bytes. TFTP and HTTP both cap names lower in practice.
pub const NAME_LEN_MAX: usize = 1024;

/// Why a text is not a name that could be in any catalogue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadName {
    /// Empty after slashes were taken away.
    Empty,
    /// Longer than [`NAME_LEN_MAX`].
    TooLong,
    /// A `.` or `..` step, or one that Windows would take for it (`..` with blanks or dots after it).
    Step,
    /// A drive letter or another use of a colon at the front of a step.
    Drive,
    /// NUL or another control character.
    Control,
    /// Not UTF-8.
    Encoding,
}

/// Turns a client's name into `/`-separated steps: backslashes become slashes, repeated ones collapse, a leading one
/// goes. Case is kept.
///
/// # Errors
/// [`BadName`] for anything that tries to leave the folder or cannot be a file name.
pub fn normalise(name: &str) -> Result<String, BadName> {
    if name.len() > NAME_LEN_MAX {
        return Err(BadName::TooLong);
    }
    if name.chars().any(char::is_control) {
        return Err(BadName::Control);
    }
    let mut out = String::with_capacity(name.len());
    for step in name.split(['/', '\\']).filter(|step| !step.is_empty()) {
        // `...` and `.. ` name the parent on some systems; nothing that is only dots and blanks is a file of ours.
        if step.chars().all(|c| c == '.' || c == ' ') {
            return Err(BadName::Step);
        }
        let mut chars = step.chars();
        if chars.next().is_some_and(|c| c.is_ascii_alphabetic()) && chars.next() == Some(':') {
            return Err(BadName::Drive);
        }
        if !out.is_empty() {
            out.push('/');
        }
        out.push_str(step);
    }
    if out.is_empty() { Err(BadName::Empty) } else { Ok(out) }
}

/// [`normalise`] for a name that came as bytes (TFTP).
///
/// # Errors
/// As there, and [`BadName::Encoding`].
pub fn normalise_bytes(name: &[u8]) -> Result<String, BadName> {
    normalise(std::str::from_utf8(name).map_err(|_| BadName::Encoding)?)
}

/// The form in which names compare when case does not matter.
pub fn folded(name: &str) -> String {
    name.to_lowercase()
}

/// Last step of a `/`-separated name.
pub fn base(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// True for a file that is a WIM by its name.
pub fn is_wim(name: &str) -> bool {
    folded(name).ends_with(".wim")
}

/// [`is_wim`], or solid or a part of a split one by its name.
pub fn may_be_wim(name: &str) -> bool {
    let name = folded(name);
    [".wim", ".esd", ".swm"].iter().any(|end| name.ends_with(end))
}

/// True for what is never payload whatever folder it is in: dot files, `private/`, `image.toml`, templates.
pub fn is_hidden(name: &str) -> bool {
    let name = folded(name);
    let mut steps = name.split('/').peekable();
    while let Some(step) = steps.next() {
        if step.starts_with('.') || step == "private" {
            return true;
        }
        if steps.peek().is_none() {
            let template = [".tmpl", ".template", ".j2", ".jinja", ".jinja2", ".tera"]
                .iter()
                .any(|suffix| step.ends_with(suffix));
            return template || step == "image.toml";
        }
    }
    false
}

/// True for what is in a folder `private`, and for such a folder.
pub fn is_private(name: &str) -> bool {
    folded(name).split('/').any(|step| step == "private")
}

/// True when a file of this name can be asked for at all; what cannot is not listed.
pub fn is_nameable(name: &str) -> bool {
    normalise(name).is_ok_and(|normal| normal == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_windows_client_is_the_same_name() {
        for name in [
            "winpe/Boot/BCD",
            "/winpe/Boot/BCD",
            "\\winpe\\Boot\\BCD",
            "//winpe\\/Boot//BCD",
            "winpe/Boot/BCD/",
        ] {
            assert_eq!(normalise(name).as_deref(), Ok("winpe/Boot/BCD"), "{name}");
        }
    }

    #[test]
    fn names_that_leave_are_no_names() {
        for (name, why) in [
            ("../etc/passwd", BadName::Step),
            ("a/../../b", BadName::Step),
            ("..\\b", BadName::Step),
            ("a\\..\\b", BadName::Step),
            ("./a", BadName::Step),
            ("a/.", BadName::Step),
            ("a/.../b", BadName::Step),
            ("a/.. /b", BadName::Step),
            ("C:/windows", BadName::Drive),
            ("c:\\windows", BadName::Drive),
            ("a/C:b", BadName::Drive),
            ("a\0b", BadName::Control),
            ("a\nb", BadName::Control),
            ("", BadName::Empty),
            ("///", BadName::Empty),
        ] {
            assert_eq!(normalise(name), Err(why), "{name:?}");
        }
        assert_eq!(normalise(&"a".repeat(NAME_LEN_MAX + 1)), Err(BadName::TooLong));
        assert_eq!(normalise_bytes(b"a\xffb"), Err(BadName::Encoding));
    }

    #[test]
    fn what_is_not_payload_is_hidden_at_any_depth() {
        for name in [
            "image.toml",
            "sub/IMAGE.TOML",
            ".secret",
            "a/.b/c",
            "private/x",
            "a/Private/x",
            "x.tmpl",
            "unattend.xml.j2",
        ] {
            assert!(is_hidden(name), "{name}");
        }
        for name in ["boot.wim", "private.key.pub", "a/privateer/x", "image.toml/x", "tmpl"] {
            assert!(!is_hidden(name), "{name}");
        }
    }
}
