//! Names and values of queries and `application/x-www-form-urlencoded` bodies.
//!
//! iPXE's `:uristring` writes a blank as `%20` and, before July 2026, leaves a `+` as it is (core/uri.c). A
//! decoder that turns `+` into a blank would change serials and names, so what `+` means depends on the client.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::path::hex_pair;

/// What a raw `+` stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plus {
    /// Itself: iPXE.
    Plus,
    /// A blank: everybody else.
    Blank,
}

/// One `name=value`; without `=` the value is empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field<'a> {
    /// Name.
    pub name: Encoded<'a>,
    /// Value.
    pub value: Encoded<'a>,
}

/// A text still percent-encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Encoded<'a> {
    raw: &'a [u8],
    plus: Plus,
}

impl<'a> Encoded<'a> {
    /// The bytes as sent.
    pub fn raw(self) -> &'a [u8] {
        self.raw
    }

    /// The decoded bytes, one by one. A `%` that begins no escape stands for itself: in a value that is better
    /// than losing the machine's serial.
    pub fn bytes(self) -> impl Iterator<Item = u8> + use<'a> {
        let mut rest = self.raw;
        std::iter::from_fn(move || {
            let (&first, tail) = rest.split_first()?;
            rest = tail;
            if first == b'%'
                && let [high, low, tail @ ..] = rest
                && let Some(byte) = hex_pair(Some(*high), Some(*low))
            {
                rest = tail;
                return Some(byte);
            }
            Some(if first == b'+' && self.plus == Plus::Blank { b' ' } else { first })
        })
    }

    /// True when the decoded text is `text`, in any case.
    pub fn is(self, text: &str) -> bool {
        // Names are mostly sent as they are, and what holds an escape is longer than what it stands for.
        match self.raw.len().cmp(&text.len()) {
            Ordering::Less => false,
            Ordering::Equal if self.raw.eq_ignore_ascii_case(text.as_bytes()) => true,
            Ordering::Equal | Ordering::Greater => {
                self.raw.iter().any(|byte| matches!(byte, b'%' | b'+')) && self.decodes_to(text)
            }
        }
    }

    fn decodes_to(self, text: &str) -> bool {
        let mut bytes = self.bytes();
        text.bytes().all(|want| bytes.next().is_some_and(|have| have.eq_ignore_ascii_case(&want)))
            && bytes.next().is_none()
    }

    /// Decodes into `buffer`; `None` when it does not fit or is not UTF-8.
    pub fn decode(self, buffer: &mut [u8]) -> Option<&str> {
        let mut len = 0;
        for byte in self.bytes() {
            *buffer.get_mut(len)? = byte;
            len += 1;
        }
        std::str::from_utf8(buffer.get(..len)?).ok()
    }

    /// The decoded text without control characters and surrounding blanks, if it is not empty and at most
    /// `limit` bytes. Bytes that are no UTF-8 become U+FFFD: firmware tables hold Latin-1 now and then.
    pub fn text(self, limit: usize) -> Option<Cow<'a, str>> {
        let is_plain = |byte: u8| byte.is_ascii_graphic() & (byte != b'%') & (byte != b'+');
        if self.raw.iter().fold(true, |all, byte| all & is_plain(*byte))
            && let Ok(text) = std::str::from_utf8(self.raw)
        {
            // Nothing to decode, to leave out or to trim: most of what machines say.
            return (!text.is_empty() && text.len() <= limit).then_some(Cow::Borrowed(text));
        }
        let bytes: Vec<u8> = self.bytes().take(limit + 1).collect();
        if bytes.len() > limit {
            return None;
        }
        let text: String = String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control()).collect();
        let text = text.trim();
        // U+FFFD is longer than the byte it stands for.
        (!text.is_empty() && text.len() <= limit).then(|| Cow::Owned(text.to_owned()))
    }
}

/// The names and values of a query or form, in order.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
    plus: Plus,
}

/// Walks a query (without its `?`) or a form body.
pub fn fields(bytes: &[u8], plus: Plus) -> Fields<'_> {
    Fields { rest: bytes, plus }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        while !self.rest.is_empty() {
            let (field, rest) = split_at_byte(self.rest, b'&');
            self.rest = rest;
            if field.is_empty() {
                continue;
            }
            let (name, value) = split_at_byte(field, b'=');
            let plus = self.plus;
            return Some(Field { name: Encoded { raw: name, plus }, value: Encoded { raw: value, plus } });
        }
        None
    }
}

/// What stands before and behind the first `byte`; everything and nothing if there is none.
fn split_at_byte(bytes: &[u8], byte: u8) -> (&[u8], &[u8]) {
    let mut halves = bytes.splitn(2, |found| *found == byte);
    (halves.next().unwrap_or_default(), halves.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str, plus: Plus) -> Vec<(String, String)> {
        let decoded =
            |text: Encoded<'_>| String::from_utf8_lossy(&text.bytes().collect::<Vec<_>>()).into_owned();
        fields(text.as_bytes(), plus).map(|field| (decoded(field.name), decoded(field.value))).collect()
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn plus_is_a_plus_to_ipxe_and_a_blank_to_others() {
        let text = "serial=A+B%20C%2BD&mac=52%3a54%3A00";
        let ipxe = owned(&[("serial", "A+B C+D"), ("mac", "52:54:00")]);
        let other = owned(&[("serial", "A B C+D"), ("mac", "52:54:00")]);
        assert_eq!(pairs(text, Plus::Plus), ipxe);
        assert_eq!(pairs(text, Plus::Blank), other);
    }

    #[test]
    fn odd_forms_still_have_their_fields() {
        assert_eq!(pairs("", Plus::Plus), owned(&[]));
        assert_eq!(pairs("&&", Plus::Plus), owned(&[]));
        assert_eq!(
            pairs("&a&b=&=c&d=e=f&", Plus::Plus),
            owned(&[("a", ""), ("b", ""), ("", "c"), ("d", "e=f")])
        );
        assert_eq!(
            pairs("a=%&b=%4&c=%zz&d=100%25", Plus::Plus),
            owned(&[("a", "%"), ("b", "%4"), ("c", "%zz"), ("d", "100%")])
        );
    }

    #[test]
    fn names_match_in_any_case_and_any_encoding() {
        let field = fields(b"M%41c=1", Plus::Plus).next().unwrap();
        assert!(field.name.is("mac") && field.name.is("MAC"));
        assert!(!field.name.is("ma") && !field.name.is("macs"));
        assert_eq!(field.name.raw(), b"M%41c");
    }

    #[test]
    fn texts_are_bounded_trimmed_and_free_of_control_characters() {
        let text =
            |raw: &'static str, limit| fields(raw.as_bytes(), Plus::Blank).next().unwrap().value.text(limit);
        assert_eq!(text("a=%20x%0a%00y%1b+z%20", 64).as_deref(), Some("xy z"));
        assert_eq!(text("a=%20%20", 64), None);
        assert_eq!(text("a=", 64), None);
        assert_eq!(text("a=abcd", 4).as_deref(), Some("abcd"));
        assert_eq!(text("a=abcde", 4), None);
        assert_eq!(text("a=Intel%AE", 64).as_deref(), Some("Intel\u{fffd}"));
        assert_eq!(text("a=%AE%AE", 4), None);
    }

    #[test]
    fn decoding_into_a_buffer_fits_or_is_none() {
        let value = fields(b"a=%41%42+", Plus::Blank).next().unwrap().value;
        assert_eq!(value.decode(&mut [0; 3]), Some("AB "));
        assert_eq!(value.decode(&mut [0; 2]), None);
        assert_eq!(fields(b"a=%ff", Plus::Blank).next().unwrap().value.decode(&mut [0; 3]), None);
    }
}
