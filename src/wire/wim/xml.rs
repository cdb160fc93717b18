//! The XML inside a WIM: UTF-16LE with a byte order mark, and what it says about each image. All of it is text a
//! stranger may have written.

use std::fmt;

use roxmltree::{Document, Node, ParsingOptions};

use crate::wire::arch::Cpu;

/// Most bytes of XML taken in; install media have some ten thousand.
pub const XML_LEN_MAX: usize = 4 * 1024 * 1024;
/// Most nodes taken in, since each costs far more memory than its text.
const NODES_MAX: u32 = 200_000;
/// Longest tag taken in, bytes: the parser compares every attribute of an element with all before it.
const TAG_LEN_MAX: usize = 4 * 1024;
/// Most mentions of namespaces taken in (no WIM has one): the parser hands all of an element on to those inside it.
const NAMESPACES_MAX: usize = 64;

/// Why the XML of a WIM cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XmlError {
    /// More than [`XML_LEN_MAX`] bytes.
    TooLong(u64),
    /// An odd number of bytes, or text that is not UTF-16.
    NotUtf16,
    /// Not well-formed, with too many nodes, tags or namespaces beyond all measure, or with a document type (no WIM has one).
    NotXml,
    /// Well-formed, but its root is not `WIM`.
    NoWim,
}

impl fmt::Display for XmlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(len) => write!(f, "{len} bytes of XML, more than {XML_LEN_MAX}"),
            Self::NotUtf16 => f.write_str("the XML is not UTF-16"),
            Self::NotXml => f.write_str("the XML is not well-formed"),
            Self::NoWim => f.write_str("the XML does not describe a WIM"),
        }
    }
}

impl std::error::Error for XmlError {}

/// Text of the XML resource, without its byte order mark.
///
/// # Errors
/// [`XmlError::TooLong`] or [`XmlError::NotUtf16`].
pub fn decode(bytes: &[u8]) -> Result<String, XmlError> {
    if bytes.len() > XML_LEN_MAX {
        return Err(XmlError::TooLong(bytes.len() as u64));
    }
    let (units, rest) = bytes.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(XmlError::NotUtf16);
    }
    let units = units.iter().map(|unit| u16::from_le_bytes(*unit));
    let text: String = char::decode_utf16(units).collect::<Result<_, _>>().map_err(|_| XmlError::NotUtf16)?;
    // Some writers end the text with NUL.
    Ok(text.strip_prefix('\u{feff}').unwrap_or(&text).trim_end_matches('\0').to_owned())
}

/// Bytes of the XML resource for a text.
pub fn encode(text: &str) -> Vec<u8> {
    std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
}

/// Text made safe to stand between two tags.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            // XML 1.0 has no way to write the other control characters.
            c if c.is_control() && !matches!(c, '\t' | '\n' | '\r') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// What the XML says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WimXml {
    /// Images in the order of their index.
    pub images: Vec<ImageXml>,
}

/// One image.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ImageXml {
    /// Index, from 1.
    pub index: u32,
    /// NAME; two images may have the same.
    pub name: Option<String>,
    /// DESCRIPTION.
    pub description: Option<String>,
    /// DISPLAYNAME: what Windows setup shows.
    pub display_name: Option<String>,
    /// FLAGS: the edition.
    pub flags: Option<String>,
    /// TOTALBYTES: bytes of all files once applied.
    pub total_bytes: Option<u64>,
    /// HARDLINKBYTES: of these, bytes that are hard links.
    pub hard_link_bytes: Option<u64>,
    /// FILECOUNT.
    pub file_count: Option<u64>,
    /// DIRCOUNT.
    pub directory_count: Option<u64>,
    /// Present when the image holds Windows.
    pub windows: Option<WindowsXml>,
}

/// What is under WINDOWS; any of it may be missing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WindowsXml {
    /// ARCH: 0 x86, 5 ARM, 6 ia64, 9 x64, 12 ARM64.
    pub arch: Option<u32>,
    /// PRODUCTNAME.
    pub product: Option<String>,
    /// EDITIONID; `WindowsPE` in a WinPE.
    pub edition: Option<String>,
    /// INSTALLATIONTYPE.
    pub installation_type: Option<String>,
    /// LANGUAGES/LANGUAGE.
    pub languages: Vec<String>,
    /// LANGUAGES/DEFAULT.
    pub default_language: Option<String>,
    /// VERSION as major, minor, build.
    pub version: Option<(u32, u32, u32)>,
    /// VERSION/SPBUILD.
    pub sp_build: Option<u32>,
}

impl WindowsXml {
    /// The processor ARCH names.
    pub fn cpu(&self) -> Option<Cpu> {
        Some(match self.arch? {
            0 => Cpu::X86,
            5 => Cpu::Arm32,
            9 => Cpu::X64,
            12 => Cpu::Arm64,
            _ => Cpu::Other,
        })
    }
}

impl WimXml {
    /// Reads the text. Unknown elements are passed over, images without a usable index left out.
    ///
    /// # Errors
    /// [`XmlError`].
    pub fn parse(text: &str) -> Result<Self, XmlError> {
        if has_long_tag(text) || text.matches("xmlns").nth(NAMESPACES_MAX).is_some() {
            return Err(XmlError::NotXml);
        }
        let options =
            ParsingOptions { allow_dtd: false, nodes_limit: NODES_MAX, ..ParsingOptions::default() };
        let document = Document::parse_with_options(text, options).map_err(|_| XmlError::NotXml)?;
        let root = document.root_element();
        if !root.has_tag_name("WIM") {
            return Err(XmlError::NoWim);
        }
        let mut images: Vec<_> =
            root.children().filter(|node| node.has_tag_name("IMAGE")).filter_map(image).collect();
        images.sort_by_key(|image| image.index);
        Ok(Self { images })
    }

    /// An image by its index.
    pub fn image(&self, index: u32) -> Option<&ImageXml> {
        self.images.iter().find(|image| image.index == index)
    }
}

/// True where a tag has more than [`TAG_LEN_MAX`] bytes. One pass; where the text is not well-formed the parser stops too.
fn has_long_tag(text: &str) -> bool {
    let mut rest = text;
    while let Some((_, tag)) = rest.split_once('<') {
        // What these hold is text to the parser.
        let end = [("!--", "-->"), ("![CDATA[", "]]>"), ("?", "?>")];
        if let Some((begin, end)) = end.iter().find(|(begin, _)| tag.starts_with(begin)) {
            let held = tag.get(begin.len()..).and_then(|held| held.split_once(end));
            let Some((_, behind)) = held else { return false };
            rest = behind;
            continue;
        }
        let mut quote = None;
        let end = tag.bytes().position(|byte| match quote {
            Some(open) => {
                quote = quote.filter(|_| byte != open);
                false
            }
            None => {
                quote = Some(byte).filter(|byte| matches!(byte, b'"' | b'\''));
                byte == b'>'
            }
        });
        let len = end.unwrap_or(tag.len());
        if len > TAG_LEN_MAX {
            return true;
        }
        rest = tag.get(len..).unwrap_or_default();
    }
    false
}

fn image(node: Node<'_, '_>) -> Option<ImageXml> {
    Some(ImageXml {
        index: node.attribute("INDEX")?.trim().parse().ok()?,
        name: text(node, "NAME"),
        description: text(node, "DESCRIPTION"),
        display_name: text(node, "DISPLAYNAME"),
        flags: text(node, "FLAGS"),
        total_bytes: number(node, "TOTALBYTES"),
        hard_link_bytes: number(node, "HARDLINKBYTES"),
        file_count: number(node, "FILECOUNT"),
        directory_count: number(node, "DIRCOUNT"),
        windows: child(node, "WINDOWS").map(windows),
    })
}

fn windows(node: Node<'_, '_>) -> WindowsXml {
    let languages = child(node, "LANGUAGES");
    let version = child(node, "VERSION");
    WindowsXml {
        arch: number(node, "ARCH"),
        product: text(node, "PRODUCTNAME"),
        edition: text(node, "EDITIONID"),
        installation_type: text(node, "INSTALLATIONTYPE"),
        languages: languages
            .iter()
            .flat_map(|node| node.children().filter(|child| child.has_tag_name("LANGUAGE")))
            .filter_map(text_of)
            .collect(),
        default_language: languages.and_then(|node| text(node, "DEFAULT")),
        version: version
            .and_then(|node| Some((number(node, "MAJOR")?, number(node, "MINOR")?, number(node, "BUILD")?))),
        sp_build: version.and_then(|node| number(node, "SPBUILD")),
    }
}

fn child<'a, 'i>(node: Node<'a, 'i>, tag: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.has_tag_name(tag))
}

/// An element's text on one line, without control characters; `None` when empty.
fn text_of(node: Node<'_, '_>) -> Option<String> {
    let text: String = node.text()?.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn text(node: Node<'_, '_>, tag: &str) -> Option<String> {
    text_of(child(node, tag)?)
}

fn number<N: std::str::FromStr>(node: Node<'_, '_>, tag: &str) -> Option<N> {
    text(node, tag)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEDIA: &str = "<WIM><TOTALBYTES>1</TOTALBYTES>\
        <IMAGE INDEX=\"2\"><NAME>Microsoft Windows Setup (x64)</NAME></IMAGE>\
        <IMAGE INDEX=\"1\"><DIRCOUNT>7</DIRCOUNT><FILECOUNT>9</FILECOUNT><TOTALBYTES>1234</TOTALBYTES>\
        <HARDLINKBYTES>5</HARDLINKBYTES><NAME>A &amp; B\n&#10;c</NAME><DESCRIPTION/>\
        <WINDOWS><ARCH>9</ARCH><EDITIONID>WindowsPE</EDITIONID>\
        <LANGUAGES><LANGUAGE>en-US</LANGUAGE><LANGUAGE>de-DE</LANGUAGE><DEFAULT>en-US</DEFAULT></LANGUAGES>\
        <VERSION><MAJOR>10</MAJOR><MINOR>0</MINOR><BUILD>26100</BUILD><SPBUILD>1</SPBUILD></VERSION>\
        </WINDOWS></IMAGE><IMAGE><NAME>no index</NAME></IMAGE></WIM>";

    #[test]
    fn images_come_in_order_with_what_the_xml_says() {
        let xml = WimXml::parse(MEDIA).unwrap();
        assert_eq!(xml.images.len(), 2);
        let pe = xml.image(1).unwrap();
        assert_eq!(pe.name.as_deref(), Some("A & B  c"));
        assert_eq!(pe.description, None);
        assert_eq!((pe.directory_count, pe.file_count), (Some(7), Some(9)));
        assert_eq!((pe.total_bytes, pe.hard_link_bytes), (Some(1234), Some(5)));
        let windows = pe.windows.as_ref().unwrap();
        assert_eq!(windows.cpu(), Some(Cpu::X64));
        assert_eq!(windows.version, Some((10, 0, 26100)));
        assert_eq!(windows.languages, ["en-US", "de-DE"]);
        assert_eq!(windows.default_language.as_deref(), Some("en-US"));
        assert_eq!(xml.image(2).unwrap().windows, None);
    }

    #[test]
    fn text_survives_both_ways() {
        for text in ["", MEDIA, "ä𝄞"] {
            assert_eq!(decode(&encode(text)).as_deref(), Ok(text));
        }
        assert_eq!(decode(b"a"), Err(XmlError::NotUtf16));
        assert_eq!(decode(&[0x00, 0xd8]), Err(XmlError::NotUtf16));
        assert_eq!(decode(&vec![0; XML_LEN_MAX + 2]), Err(XmlError::TooLong(XML_LEN_MAX as u64 + 2)));
        assert_eq!(escape("<a&b>\u{1}"), "&lt;a&amp;b&gt; ");
    }

    #[test]
    fn hostile_xml_is_refused_without_harm() {
        assert_eq!(WimXml::parse("<WIM>"), Err(XmlError::NotXml));
        assert_eq!(WimXml::parse("<wim/>"), Err(XmlError::NoWim));
        let bomb = "<!DOCTYPE WIM [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;\">]><WIM>&b;</WIM>";
        assert_eq!(WimXml::parse(bomb), Err(XmlError::NotXml));
        let deep = "<WIM>".repeat(300_000);
        assert_eq!(WimXml::parse(&deep), Err(XmlError::NotXml));
        let deep = format!("{}{}", "<WIM>".repeat(100_000), "</WIM>".repeat(100_000));
        assert_eq!(WimXml::parse(&deep), Ok(WimXml::default()));
        // Each of these would keep the parser busy for hours.
        let many: String = (0..100_000).map(|n| format!(" a{n}=''")).collect();
        for (begin, end) in [
            ("<WIM", "/>"),
            ("<WIM a='>'", "/>"),
            ("<!-- ' --><WIM", "/>"),
            ("<WIM><![CDATA[']]><a", "/></WIM>"),
        ] {
            assert_eq!(WimXml::parse(&format!("{begin}{many}{end}")), Err(XmlError::NotXml), "{begin}");
        }
        let nested: String = (0..30_000).map(|n| format!("<a xmlns:a{n}='{n}'>")).collect();
        let closed = "</a>".repeat(30_000);
        assert_eq!(WimXml::parse(&format!("<WIM>{nested}{closed}</WIM>")), Err(XmlError::NotXml));
        // Long text is none of their business.
        let long = "it's > ".repeat(10_000);
        for text in [long.replace('>', ""), format!("<!--{long}-->"), format!("<![CDATA[<{long}]]>")] {
            assert_eq!(WimXml::parse(&format!("<WIM>{text}<a/></WIM>")), Ok(WimXml::default()));
        }
        assert!(
            WimXml::parse("<WIM><IMAGE INDEX=\"-1\"/><IMAGE INDEX=\"99999999999\"/></WIM>")
                .unwrap()
                .images
                .is_empty()
        );
    }
}
