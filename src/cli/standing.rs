//! A configuration on this host: whether what it names is here.

use std::io;
use std::path::Path;

use super::serve::library_settings;
use crate::config::{DhcpMode, Loaded, Origin, Plan, Problem};
use crate::files::Catalog;
use crate::files::library::Library;
use crate::jobs::image::Images as _;
use crate::jobs::script::{MenuDefault, Unknown};
use crate::sys::interfaces;
use crate::sys::privileges::Account;

/// What a look around found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Without these no server starts.
    pub(super) problems: Vec<Problem>,
    /// What may be meant, or may come.
    pub(super) warnings: Vec<String>,
}

/// Looks for what a configuration names.
pub(super) fn look(loaded: &Loaded) -> Found {
    let plan = &loaded.plan;
    let mut found = Found::default();
    let mut wrong = |key: &str, what: &str, expected: String| {
        let entry = loaded.effective.iter().find(|(path, _)| *path == key).map(|(_, entry)| entry);
        found.problems.push(Problem {
            origin: entry.map_or(Origin::Default, |entry| entry.origin.clone()),
            key: key.to_owned(),
            found: format!("{}{what}", entry.map_or_else(String::new, |entry| entry.value.to_string())),
            expected,
        });
    };
    let user = plan.server.user.as_str();
    if !user.is_empty()
        && let Err(error) = Account::find(user)
    {
        wrong("server.user", "", format!("a user of this host ({error})"));
    }
    if let Some((certificate, key)) = &plan.https.files {
        for (name, file) in [("https.certificate", certificate), ("https.key", key)] {
            match why_unreadable(file) {
                Some(why) if !plan.https.listen.is_empty() => {
                    wrong(name, &format!(", {why}"), "a PEM file".into());
                }
                Some(why) => found.warnings.push(format!("{name} {}: {why}", file.display())),
                None => {}
            }
        }
    }
    let here = interfaces::list().unwrap_or_default();
    let named = plan.server.interfaces.iter().filter(|_| plan.dhcp.mode != DhcpMode::Off);
    for name in named.filter(|name| here.iter().all(|here| here.name != **name)) {
        found.warnings.push(format!(
            "server.interfaces: there is no interface {name} on this host: `serve` does not start until there is"
        ));
    }
    for (index, subnet) in plan.dhcp.subnets.iter().enumerate() {
        let Some((first, last)) = subnet.range else { continue };
        let own = here.iter().filter_map(|here| Some((&here.name, here.addr?)));
        for (name, addr) in own.filter(|(_, addr)| (first..=last).contains(addr)) {
            found.warnings.push(format!(
                "dhcp.subnet[{}].range has {addr} in it, this host's own on {name}: no machine gets it",
                index + 1
            ));
        }
    }
    match Library::open(library_settings(plan)) {
        Ok(library) => found.warnings.extend(menu_default(plan, &library.load())),
        // A folder of our own is made at the first start; of an unreadable one only its user can tell.
        Err(_) if plan.images_dir.starts_with(&plan.server.state_dir) => {
            if let MenuDefault::Image(name) = &plan.policy.menu_default {
                found.warnings.push(format!(
                    "policy.menu_default: whether there is an image {name:?} cannot be seen here"
                ));
            }
        }
        Err(error) => found.warnings.push(error.to_string()),
    }
    found
}

/// Why a file cannot be read, if that is not for want of a privilege: keys are often for root alone.
fn why_unreadable(file: &Path) -> Option<String> {
    match std::fs::File::open(file) {
        Ok(open) => match open.metadata() {
            Ok(meta) if meta.is_dir() => Some("a folder".into()),
            _ => None,
        },
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some("which does not exist".into()),
        Err(error) => Some(error.to_string()),
    }
}

/// Why the menu's default is the local disk and not what `policy.menu_default` names.
pub(super) fn menu_default(plan: &Plan, catalog: &Catalog) -> Option<String> {
    let MenuDefault::Image(name) = &plan.policy.menu_default else { return None };
    if plan.policy.unknown != Unknown::Menu {
        return None;
    }
    let why = match catalog.image(name) {
        None => "there is no such image".to_owned(),
        Some(image) if image.destructive => "the image may wipe a disk and is never a default".to_owned(),
        Some(image) => format!("the image cannot boot: {}", image.unbootable.as_ref()?),
    };
    Some(format!(
        "policy.menu_default {name:?}: {why}; until that changes the menu's default is the local disk"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    fn look_at(text: &str) -> Found {
        look(&load(&Sources { file: Some(("f".into(), text.into())), ..Sources::default() }).unwrap())
    }

    #[test]
    fn what_no_server_starts_with_is_a_problem_with_its_line() {
        let found = look_at(
            "[server]\nuser = \"no-such-user-here\"\n[https]\nlisten = [\"127.0.0.1:9443\"]\n\
             certificate = \"/nonexistent/a.pem\"\nkey = \"/nonexistent/b.pem\"\n",
        );
        let lines: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(
            lines[0].starts_with("f:2: server.user: found \"no-such-user-here\", expected a user"),
            "{lines:?}"
        );
        assert!(lines[1].starts_with("f:5: https.certificate: found"), "{lines:?}");
        assert!(lines[1].ends_with("which does not exist, expected a PEM file"), "{lines:?}");
    }

    #[test]
    fn what_may_come_and_what_nobody_gets_are_warnings() {
        let folder = std::env::temp_dir().join(format!("bootstorm-standing-{}", std::process::id()));
        for (image, settings) in [("wipe", "destructive = true\n"), ("broken", "kind = \"winpe\"\n")] {
            std::fs::create_dir_all(folder.join(image)).unwrap();
            std::fs::write(folder.join(image).join("a.ipxe"), "#!ipxe\nshell\n").unwrap();
            std::fs::write(folder.join(image).join("image.toml"), settings).unwrap();
        }
        let with = |text: &str| look_at(&format!("[images]\ndir = {folder:?}\n{text}"));
        for (text, wanted) in [
            (
                "[server]\ninterfaces = [\"nothere0\"]\n",
                "no interface nothere0 on this host: `serve` does not start",
            ),
            ("[policy]\nmenu_default = \"gone\"\n", "\"gone\": there is no such image"),
            ("[policy]\nmenu_default = \"wipe\"\n", "\"wipe\": the image may wipe a disk"),
            ("[policy]\nmenu_default = \"broken\"\n", "\"broken\": the image cannot boot: "),
            (
                "[dhcp]\nmode = \"full\"\n[[dhcp.subnet]]\nnetwork = \"127.0.0.0/8\"\n\
                 range = \"127.0.0.1-127.0.0.9\"\n",
                "range has 127.0.0.1 in it, this host's own on lo",
            ),
        ] {
            let found = with(text);
            assert!(found.problems.is_empty(), "{text}: {found:?}");
            assert!(found.warnings.iter().any(|warning| warning.contains(wanted)), "{text}: {found:?}");
        }
        assert_eq!(with("").warnings, Vec::<String>::new());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
