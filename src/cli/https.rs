//! `https`: what the server shows to those who ask by HTTPS.

use super::args::{Common, HttpsVerb};
use super::{Done, Exit, Failure, load_config, output};
use crate::tls::{AUTHORITY_FILE, OWN_FOLDER};

pub(super) fn run(common: &Common, verb: &HttpsVerb) -> Done {
    match verb {
        HttpsVerb::Ca => {
            let path = load_config(common, &[])?.plan.server.state_dir.join(OWN_FOLDER).join(AUTHORITY_FILE);
            let text = std::fs::read(&path).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Failure::new(
                    Exit::Wrong,
                    format!(
                        "{}: there is no own CA yet; the server makes it when it first starts with [https] listen \
                         and auto = true",
                        path.display()
                    ),
                ),
                std::io::ErrorKind::PermissionDenied => {
                    Failure::new(Exit::Permission, format!("{}: {error}", path.display()))
                }
                _ => Failure::new(Exit::Runtime, format!("{}: {error}", path.display())),
            })?;
            output::raw(&text);
            Ok(Exit::Fine)
        }
    }
}
