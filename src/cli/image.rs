//! `image list` and `image show`: from the folders themselves, with or without a running server.

use serde_json::json;

use super::args::{Common, ImageVerb};
use super::serve::open_library;
use super::{Done, Exit, Failure, image_loader, load_config, output};
use crate::jobs::Image;
use crate::jobs::gss::Way;
use crate::jobs::image::Images;
use crate::wire::arch::Family;

pub(super) fn run(common: &Common, verb: &ImageVerb) -> Done {
    if let ImageVerb::Loader(verb) = verb {
        return image_loader::run(common, verb);
    }
    let plan = load_config(common, &[])?.plan;
    let library = open_library(&plan)?;
    let catalog = library.load();
    match verb {
        ImageVerb::List { json } => {
            let images: Vec<&Image> = catalog.list().iter().map(|image| &**image).collect();
            if *json {
                output::json(&json!({ "images": images }));
            } else if images.is_empty() {
                output::line(format!("no images in {}", plan.images_dir.display()));
            } else {
                let rows = images
                    .iter()
                    .map(|image| {
                        let state = match &image.unbootable {
                            Some(reason) => format!("cannot boot: {reason}"),
                            None if image.destructive => "destructive".into(),
                            None => String::new(),
                        };
                        vec![
                            image.name.clone(),
                            kind(image),
                            output::bytes(image.bytes()),
                            image.title.clone(),
                            state,
                        ]
                    })
                    .collect();
                output::table(&["NAME", "KIND", "SIZE", "TITLE", "STATE"], rows);
            }
            Ok(Exit::Fine)
        }
        ImageVerb::Show { name, json } => {
            let Some(image) = catalog.image(name) else {
                let message = format!(
                    "there is no image {name:?} in {}; `bootstorm image list` shows the ones there are",
                    plan.images_dir.display()
                );
                return Err(Failure::new(Exit::Wrong, message));
            };
            if *json {
                output::json(
                    &serde_json::to_value(image).map_err(|error| Failure::new(Exit::Runtime, error))?,
                );
            } else {
                show(image);
            }
            Ok(Exit::Fine)
        }
        // Gone above: that one asks the running server first.
        ImageVerb::Loader(_) => Ok(Exit::Fine),
    }
}

fn kind(image: &Image) -> String {
    serde_json::to_value(image.kind)
        .ok()
        .and_then(|kind| kind.as_str().map(str::to_owned))
        .unwrap_or_else(|| "-".into())
}

fn show(image: &Image) {
    output::line(format!("{}: {}", image.name, image.title));
    output::line(format!("kind {}, {}", kind(image), output::bytes(image.bytes())));
    if !image.args.is_empty() {
        output::line(format!("arguments {}", image.args));
    }
    if image.destructive {
        output::line("destructive: may wipe a disk");
    }
    if let Some(reason) = &image.unbootable {
        output::line(format!("cannot boot: {reason}"));
    }
    if image.gss.is_some() {
        for family in Family::ALL {
            match (image.way(family), image.native_for(family)) {
                (Way::Ipxe, _) => output::line(format!("{} machines boot by iPXE", family.word())),
                (Way::Native, Some(native)) => output::line(format!(
                    "{} machines boot {} over TFTP, without iPXE",
                    family.word(),
                    output::plain(&native.program)
                )),
                _ => {}
            }
        }
    }
    for warning in &image.warnings {
        output::line(format!("warning: {warning}"));
    }
    let rows = image.files.iter().map(|file| vec![file.name.clone(), output::bytes(file.len)]).collect();
    output::table(&["FILE", "SIZE"], rows);
}
