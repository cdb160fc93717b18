//! What the API and the commands say of an image's loaders.

use serde_json::{Map, Value, json};

use crate::files::Catalog;
use crate::files::gss::Switched;
use crate::jobs::Image;
use crate::jobs::gss::Way;
use crate::jobs::image::Images;
use crate::wire::arch::Family;

/// How each family of machines boots an image: `{"bios": {"by": "native", "program": "X64/pxeboot.n12"}, ...}`.
pub fn ways(image: &Image) -> Value {
    let mut ways = Map::new();
    for family in Family::ALL {
        let way = image.way(family);
        let mut said = json!({ "by": way.word() });
        if let (Way::Native, Some(native)) = (way, image.native_for(family)) {
            said["program"] = json!(native.program);
        }
        ways.insert(family.word().to_owned(), said);
    }
    Value::Object(ways)
}

/// What switching an image's loaders came to, from the catalogue after it.
pub fn loader_document(catalog: &Catalog, name: &str, ipxe: bool, done: &[Switched]) -> Value {
    let mut warnings: Vec<String> = Vec::new();
    let mut boots = Value::Null;
    if let Some(image) = catalog.image(name) {
        boots = ways(image);
        if let Some(reason) = &image.unbootable {
            warnings.push(format!("it cannot boot now: {reason}"));
        } else if !ipxe && image.gss.is_none() {
            warnings.push(
                "this folder is not laid out as GSS and DS do and brings no boot program of its own: it boots by iPXE \
                 all the same"
                    .into(),
            );
        }
    }
    json!({ "image": name, "ipxe": ipxe, "files": done, "boots": boots, "warnings": warnings })
}

/// The audit log's entry about it.
pub fn loader_entry(by: &str, ipxe: bool, document: &Value) -> Value {
    let what = if ipxe { "image-loader-enabled" } else { "image-loader-disabled" };
    json!({ "by": by, "what": what, "image": document["image"], "files": document["files"] })
}
