//! A reload of a running server's configuration: whole or not at all.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::serve::{dhcp_settings, networks, tftp_limits};
use crate::config::values::duration_text;
use crate::config::{DhcpMode, Plan, Problems};
use crate::control::Reloaded;
use crate::engine::{Shared, Tuning};
use crate::jobs::book::Refusal;
use crate::store::{Log, Transition, Write};

/// Reads the configuration again, as the command line that started the server had it.
pub(super) type Source = Box<dyn Fn() -> Result<Plan, Problems> + Send + Sync>;

/// Why a configuration was not taken.
#[derive(Debug)]
pub(super) enum Refused {
    /// It has mistakes.
    Mistakes(Problems),
    /// It changes what was given up at the start: a line each.
    NeedsRestart(Vec<String>),
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mistakes(problems) => problems.fmt(f),
            Self::NeedsRestart(changes) => {
                write!(f, "needs restart: {}; nothing was changed", changes.join("; "))
            }
        }
    }
}

/// A configuration that was taken.
pub(super) struct Told {
    changed: Vec<&'static str>,
    noted: Receiver<Result<(), Refusal>>,
}

impl Told {
    /// Waits until it is in the audit log, or is not.
    pub(super) fn wait(self) -> Reloaded {
        let noted = self.noted.recv().unwrap_or(Err(Refusal::Busy));
        Reloaded { changed: self.changed, noted }
    }
}

/// Takes new configurations into a running server.
pub(super) struct Reloader {
    source: Source,
    running: parking::Held<Plan>,
    shared: Arc<Shared>,
}

mod parking {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// A value for one thread at a time. What a panic left behind is as good as what was there before it.
    pub(super) struct Held<T>(Mutex<T>);

    impl<T> Held<T> {
        pub(super) fn new(value: T) -> Self {
            Self(Mutex::new(value))
        }

        pub(super) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

impl Reloader {
    /// `plan` is in force already.
    pub(super) fn new(plan: Plan, shared: Arc<Shared>, source: Source) -> Self {
        Self { source, running: parking::Held::new(plan), shared }
    }

    /// Reads the configuration and puts it in force: what is asked from now on is answered by it, what is under way ends
    /// as it began. The names of the tables that changed.
    pub(super) fn reload(&self) -> Result<Vec<&'static str>, Refused> {
        // Two at once would each compare with what the other replaces.
        let mut running = self.running.lock();
        let next = (self.source)().map_err(Refused::Mistakes)?;
        let fixed = needs_restart(&running, &next);
        if !fixed.is_empty() {
            return Err(Refused::NeedsRestart(fixed));
        }
        let mut changed = Vec::new();
        if running.policy != next.policy {
            changed.push("policy");
            self.shared.policy.store(Arc::new(next.policy.clone()));
        }
        if running.dhcp != next.dhcp {
            changed.push("dhcp");
        }
        if running.tftp != next.tftp {
            changed.push("tftp");
        }
        if changed.iter().any(|table| *table != "policy") {
            let tuning = Tuning { dhcp: dhcp_settings(&next), tftp_limits: tftp_limits(&next) };
            self.shared.tuning.store(Arc::new(tuning));
        }
        if running.admission != next.admission {
            changed.push("admission");
        }
        if running.admission != next.admission || running.dhcp.subnets != next.dhcp.subnets {
            self.shared.limit_boots(next.admission, networks(&next));
        }
        for note in next.notes.iter().filter(|note| !running.notes.contains(note)) {
            tracing::info!("{note}");
        }
        for warning in next.warnings.iter().filter(|warning| !running.warnings.contains(warning)) {
            tracing::warn!("{warning}");
        }
        *running = next;
        Ok(changed)
    }

    /// [`Self::reload`] with a line in the log, and an entry in the audit log if it is in force; `by` wanted it.
    pub(super) fn reload_and_tell(&self, by: &str) -> Result<Told, Refused> {
        let done = self.reload();
        match &done {
            Ok(changed) if changed.is_empty() => {
                tracing::info!(by, "configuration read again: nothing changed");
            }
            Ok(changed) => tracing::info!(by, changed = changed.join(","), "configuration reloaded"),
            Err(refused) => {
                tracing::error!(by, "the configuration is refused, the old one keeps running: {refused}");
            }
        }
        done.map(|changed| Told { noted: self.note(by, &changed), changed })
    }

    /// Has it written to the audit log. Nobody has to wait for that: whoever takes signals must not, for a disk that hangs.
    fn note(&self, by: &str, changed: &[&str]) -> Receiver<Result<(), Refusal>> {
        let said = json!({ "by": by, "what": "configuration-reloaded", "changed": changed }).to_string();
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let entry =
            Write::Append { log: Log::Audit, at_unix_ms: at, subject: "configuration".into(), body: said };
        let (tell, told) = sync_channel(1);
        let sent = self.shared.keeper.look(move |_, store| {
            let stored = store.commit(&[Transition { writes: vec![entry] }]).map(drop);
            if let Err(error) = &stored {
                tracing::warn!(%error, "a reload is not in the audit log");
            }
            // Whoever asked may not wait for it.
            let _ =
                tell.send(stored.map_err(|error| Refusal::StoreUnavailable { reason: error.to_string() }));
        });
        if !sent {
            tracing::warn!(error = %Refusal::Busy, "a reload is not in the audit log");
        }
        told
    }
}

/// What of `next` cannot be taken up by a server that runs `now`: a line for each key, as the file has it.
fn needs_restart(now: &Plan, next: &Plan) -> Vec<String> {
    // Folders below the state folder move with it: that is one change, and not theirs.
    let (from, to) = (&next.server.state_dir, &now.server.state_dir);
    let unmoved =
        |path: &PathBuf| path.strip_prefix(from).map_or_else(|_| path.clone(), |rest| to.join(rest));
    let mut unmoved_next = next.clone();
    unmoved_next.images_dir = unmoved(&next.images_dir);
    unmoved_next.loaders.dirs = next.loaders.dirs.iter().map(unmoved).collect();
    let keys = fixed_keys(now).into_iter().zip(fixed_keys(&unmoved_next)).zip(fixed_keys(next));
    let changed = keys.filter(|(((_, now), (_, next)), _)| now != next);
    let said = changed.map(|(((key, now), _), (_, next))| format!("{key} is {now} and would be {next}"));
    let mut changes: Vec<String> = said.collect();
    let (was, is) = (now.dhcp.mode, next.dhcp.mode);
    if (was == DhcpMode::Off) != (is == DhcpMode::Off) {
        changes.push(format!("dhcp.mode is {} and would be {}", json!(was), json!(is)));
    }
    // What is asked with is opened at the start.
    let asks = |plan: &Plan| plan.dhcp.mode == DhcpMode::Full && !plan.dhcp.probe.is_zero();
    if !asks(now) && asks(next) {
        let [before, after] = [now, next].map(|plan| json!(duration_text(plan.dhcp.probe)));
        changes.push(match before == after {
            true => format!("dhcp.mode is {} and would be {} with dhcp.probe {after}", json!(was), json!(is)),
            false => format!("dhcp.probe is {before} and would be {after}"),
        });
    }
    changes
}

/// The keys whose values a server keeps from its start to its end.
fn fixed_keys(plan: &Plan) -> Vec<(&'static str, Value)> {
    let Plan { server, dhcp, tftp, http, https, loaders, admin, .. } = plan;
    let (certificate, key) = https.files.as_ref().map(|(certificate, key)| (certificate, key)).unzip();
    let text =
        |path: Option<&PathBuf>| json!(path.map(|path| path.display().to_string()).unwrap_or_default());
    vec![
        ("server.interfaces", json!(server.interfaces)),
        ("server.state_dir", json!(server.state_dir)),
        ("server.driver", json!(server.driver)),
        ("server.zero_copy", json!(server.zero_copy)),
        ("server.cores", json!(server.cores)),
        ("server.user", json!(server.user)),
        ("server.sandbox", json!(server.sandbox)),
        ("server.watch_config", json!(server.watch_config)),
        ("dhcp.port", json!(dhcp.port)),
        ("dhcp.boot_server_port", json!(dhcp.boot_server_port)),
        ("dhcp.frames", json!(dhcp.frames)),
        ("tftp.listen", json!(tftp.listen)),
        ("tftp.single_port", json!(tftp.single_port)),
        ("tftp.frames", json!(tftp.frames)),
        ("http.listen", json!(http.listen)),
        ("http.congestion", json!(http.congestion)),
        ("https.listen", json!(https.listen)),
        ("https.certificate", text(certificate)),
        ("https.key", text(key)),
        ("images.dir", json!(plan.images_dir)),
        ("images.trees", json!(plan.image_trees)),
        ("loaders.dirs", json!(loaders.dirs)),
        ("loaders.bios", json!(loaders.bios)),
        ("loaders.uefi_x64", json!(loaders.uefi_x64)),
        ("loaders.uefi_ia32", json!(loaders.uefi_ia32)),
        ("loaders.uefi_arm64", json!(loaders.uefi_arm64)),
        ("loaders.wimboot", json!(loaders.wimboot)),
        ("admin.listen", json!(admin.listen.map(|listen| listen.to_string()).unwrap_or_default())),
        ("admin.expect_within", json!(duration_text(admin.expect_within))),
    ]
}

/// Sees a file change.
#[derive(Debug)]
pub(super) struct Watch {
    path: PathBuf,
    seen: Option<FileState>,
    /// Another one, and when it was first seen.
    coming: Option<(FileState, Instant)>,
}

/// A file that is the same for so long is taken to be whole.
const RESTS: Duration = Duration::from_millis(1_500);

/// When it was written last, and its length.
type FileState = (SystemTime, u64);

impl Watch {
    pub(super) fn new(path: PathBuf) -> Self {
        let seen = state_of(&path);
        Self { path, seen, coming: None }
    }

    /// True once after each change, when the file has been the same for a while: one that is copied here from afar is empty, or cut
    /// short, for a moment, and that too is a configuration.
    pub(super) fn changed(&mut self, at: Instant) -> bool {
        let now = state_of(&self.path).filter(|(_, len)| *len > 0);
        if now.is_none() || now == self.seen {
            self.coming = None;
            return false;
        }
        match (self.coming, now) {
            (Some((coming, since)), Some(now)) if coming == now => {
                let rests = at.saturating_duration_since(since) >= RESTS;
                if rests {
                    (self.seen, self.coming) = (Some(now), None);
                }
                rests
            }
            _ => {
                self.coming = now.map(|now| (now, at));
                false
            }
        }
    }
}

fn state_of(path: &Path) -> Option<FileState> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    fn plan(text: &str) -> Plan {
        load(&Sources { file: Some(("f".into(), text.into())), ..Sources::default() }).unwrap().plan
    }

    #[test]
    fn what_was_given_up_at_the_start_needs_a_restart_and_is_named() {
        let now = plan("");
        let next = plan("[http]\nlisten = [\"0.0.0.0:80\"]\n[server]\ncores = 3\n[dhcp]\nmode = \"off\"\n");
        let text = Refused::NeedsRestart(needs_restart(&now, &next)).to_string();
        assert_eq!(
            text,
            "needs restart: server.cores is 0 and would be 3; http.listen is [\"0.0.0.0:4433\"] and would be \
             [\"0.0.0.0:80\"]; dhcp.mode is \"proxy\" and would be \"off\"; nothing was changed"
        );
    }

    #[test]
    fn a_state_folder_that_moves_takes_its_folders_along_and_is_named_alone() {
        let named = |now: &str, next: &str| needs_restart(&plan(now), &plan(next));
        assert_eq!(
            named("[server]\nstate_dir = \"/a\"\n", "[server]\nstate_dir = \"/b\"\n"),
            ["server.state_dir is \"/a\" and would be \"/b\""]
        );
        assert_eq!(
            named("", "[loaders]\nuefi_x64 = [\"ipxe.efi\"]\n[images]\ndir = \"/i\"\n"),
            [
                "images.dir is \"/var/lib/bootstorm/images\" and would be \"/i\"",
                "loaders.uefi_x64 is [\"snponly.efi\",\"ipxe.efi\"] and would be [\"ipxe.efi\"]"
            ]
        );
    }

    #[test]
    fn what_is_watched_and_what_is_asked_with_are_of_the_start() {
        let named = |now: &str, next: &str| needs_restart(&plan(now), &plan(next));
        assert_eq!(
            named("", "[server]\nwatch_config = true\n"),
            ["server.watch_config is false and would be true"]
        );
        let full = "[[dhcp.subnet]]\nnetwork = \"10.0.0.0/24\"\n[dhcp]\nmode = \"full\"\n";
        let asking = format!("{full}probe = \"300ms\"\n");
        let later = "[dhcp]\nprobe = \"300ms\"\n";
        assert_eq!(named(full, &asking), ["dhcp.probe is \"0s\" and would be \"300ms\""]);
        assert_eq!(
            named(later, &asking),
            ["dhcp.mode is \"proxy\" and would be \"full\" with dhcp.probe \"300ms\""]
        );
        assert_eq!(named(&asking, full), Vec::<String>::new());
        let others = "authoritative = false\nper_circuit = 3\ndhcp_option = [\"42=10.0.0.1\"]\n";
        assert_eq!(named(full, &format!("{full}{others}")), Vec::<String>::new());
    }

    #[test]
    fn a_file_that_is_still_being_written_is_no_change_yet() {
        let path = std::env::temp_dir().join(format!("bootstorm-watched-{}", std::process::id()));
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("old");
        let (mut watch, start) = (Watch::new(path.clone()), Instant::now());
        let mut changed = |milliseconds: u64| watch.changed(start + Duration::from_millis(milliseconds));
        assert!(!changed(0) && !changed(2_000));
        write("");
        assert!(!changed(4_000) && !changed(6_000), "nothing in it");
        write("half of");
        assert!(!changed(8_000) && !changed(8_100), "links that change have it looked at sooner");
        write("half of it, and the rest");
        assert!(!changed(10_000) && !changed(11_400) && changed(11_500) && !changed(14_000));
        std::fs::remove_file(&path).unwrap();
        assert!(!changed(16_000) && !changed(18_000));
        write("it is there again");
        assert!(!changed(20_000) && changed(22_000));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn policy_subnets_and_bounds_need_none() {
        let next = plan(
            "[policy]\nunknown = \"wait\"\n[tftp]\nmax_blksize = 1428\n[dhcp]\nmode = \"full\"\n[[dhcp.subnet]]\n\
             network = \"10.0.0.0/24\"\n",
        );
        assert_eq!(needs_restart(&plan(""), &next), Vec::<String>::new());
    }
}
