//! The list of all boot options, for a person with a browser.

use std::fmt::Write;

use super::builder::push_encoded;
use crate::jobs::gss::Way;
use crate::jobs::image::{Access, Image, ImageKind, Images};
use crate::wire::arch::Family;

/// Writes the page into `out`, replacing what it held: UTF-8 HTML without scripts or anything from elsewhere.
pub fn options_page(images: &dyn Images, out: &mut String) {
    out.clear();
    out.push_str(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>bootstorm</title>\n\
         <style>body{font:16px sans-serif;margin:2em;max-width:60em}table{border-collapse:collapse}\
         td,th{padding:.3em .8em;text-align:left;border-bottom:1px solid #ccc;vertical-align:top}</style>\n\
         </head>\n<body>\n<h1>Boot options</h1>\n\
         <p>This is what a person gets. A machine that asks here is told what to boot by its job; iPXE without a \
         job gets what the policy for unknown machines says.</p>\n",
    );
    if images.list().is_empty() {
        out.push_str("<p>The library is empty. <code>bootstorm image add</code> fills it.</p>\n");
    } else {
        out.push_str(
            "<table>\n<tr><th>Image</th><th>Kind</th><th>Boots by</th><th>Size</th><th>Files</th><th>Notes</th></tr>\n",
        );
        images.list().iter().for_each(|image| row(image, out));
        out.push_str("</table>\n");
    }
    out.push_str("</body>\n</html>\n");
}

fn row(image: &Image, out: &mut String) {
    out.push_str("<tr><td>");
    escaped(&image.name, out);
    if image.title != image.name {
        out.push_str("<br>");
        escaped(&image.title, out);
    }
    out.push_str("</td><td>");
    out.push_str(match image.kind {
        Some(ImageKind::Winpe) => "WinPE",
        Some(ImageKind::Linux) => "Linux",
        Some(ImageKind::Iso) => "ISO",
        Some(ImageKind::Efi) => "EFI program",
        Some(ImageKind::Script) => "iPXE script",
        None => "not recognised",
    });
    out.push_str("</td><td>");
    ways(image, out);
    // Writing to a String cannot fail.
    let _ = write!(out, "</td><td>{} MiB</td><td>", image.bytes().div_ceil(1 << 20));
    for (index, file) in image.files.iter().enumerate() {
        if index > 0 {
            out.push_str("<br>");
        }
        let open = image.access == Access::Open;
        if open {
            out.push_str("<a href=\"/images/");
            image.name.bytes().for_each(|byte| push_encoded(out, byte));
            for part in file.name.split('/') {
                out.push('/');
                part.bytes().for_each(|byte| push_encoded(out, byte));
            }
            out.push_str("\">");
        }
        escaped(&file.name, out);
        if open {
            out.push_str("</a>");
        }
    }
    out.push_str("</td><td>");
    if let Some(reason) = &image.unbootable {
        out.push_str("Cannot boot: ");
        escaped(reason, out);
        out.push_str("<br>");
    }
    if image.destructive {
        out.push_str("May wipe the disk.<br>");
    }
    if image.access == Access::Boot {
        out.push_str("Files only for machines that boot it.<br>");
    }
    for warning in &image.warnings {
        escaped(warning, out);
        out.push_str("<br>");
    }
    out.push_str("</td></tr>\n");
}

/// Whether machines boot it by iPXE or by the folder's own program, where that is a choice at all.
fn ways(image: &Image, out: &mut String) {
    if image.unbootable.is_some() || image.boot.is_none() {
        return out.push_str("nothing");
    }
    if image.gss.is_none() {
        return out.push_str("iPXE");
    }
    for family in Family::ALL {
        match image.way(family) {
            Way::Ipxe => {
                let _ = write!(out, "{}: iPXE<br>", family.word());
            }
            Way::Native => {
                let program = image.native_for(family).map_or("", |native| native.program.as_str());
                let _ = write!(out, "{}: ", family.word());
                escaped(program, out);
                out.push_str(" by TFTP<br>");
            }
            Way::None => {}
        }
    }
}

fn escaped(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
}
