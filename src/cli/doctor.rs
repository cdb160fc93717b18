//! `doctor`: what keeps machines from booting, and the command that mends it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;
use std::time::{Instant, SystemTime};

use serde_json::json;

use super::args::{Common, Doctor, FirmwareKind};
use super::serve::open_library;
use super::{Done, Exit, Failure, client, load_config, output};
use crate::client::Kind;
use crate::config::{Plan, values};
use crate::control::client::{Client, ClientError};
use crate::doctor::live::{self, Ask, IMAGE_PART, ImageFile, Story, Way};
use crate::doctor::standing::{self, Running, Setup};
use crate::doctor::{Answerer, Finding, Level, machine};
use crate::files::catalog::Catalog;
use crate::jobs::image::{Access, Images};
use crate::sys::interfaces;

pub(super) fn run(common: &Common, doctor: &Doctor) -> Done {
    let start = Instant::now();
    let plan = load_config(common, &[])?.plan;
    let client = client(common)?;
    let library = open_library(&plan);
    let snapshot = library.as_ref().ok().map(|library| library.snapshot());
    let server = ask_server(&client);
    let acts = doctor.as_kind.is_some() || doctor.relay.is_some();
    let here = standing::is_here(&plan);
    // From another host only the network can be looked at: what is installed here is nobody's business.
    let only_live = acts && server.is_err() && !here;
    let mut findings = Vec::new();
    if !only_live {
        findings = standing::check(&Setup {
            plan: &plan,
            catalog: match (&snapshot, &library) {
                (Some(catalog), _) => Ok(catalog),
                (None, Err(failure)) => Err(failure.message.clone()),
                (None, Ok(_)) => Err("no library".into()),
            },
            server: server.clone(),
            elsewhere: !here && (acts || server.is_ok()),
            secure_boot: doctor.secure_boot,
            certificate: doctor.certificate.clone(),
            now: SystemTime::now(),
        });
    }
    let mut story = None;
    if acts {
        match ask(&plan, doctor, snapshot.as_deref().filter(|_| server.is_ok()), here)? {
            Ok(ask) => {
                let done = live::run(&ask, &|| drops(&client)).map_err(|error| {
                    let exit = if error.is_permission() { Exit::Permission } else { Exit::Runtime };
                    Failure::new(exit, error)
                })?;
                // What is seen standing says it better than what came of it.
                for finding in &done.findings {
                    if !findings.iter().any(|known| known.name == finding.name && known.level == Level::Wrong)
                    {
                        findings.push(finding.clone());
                    }
                }
                story = Some(done);
            }
            Err(finding) => findings.push(finding),
        }
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    let wrong = findings.iter().filter(|finding| finding.level == Level::Wrong).count();
    if doctor.json {
        output::json(&json!({
            "ok": wrong == 0,
            "findings": findings,
            "boot": story,
            "seconds": start.elapsed().as_secs_f64(),
        }));
    } else {
        print(&findings, story.as_ref(), doctor.verbose);
        let seconds = start.elapsed().as_secs_f64();
        output::line(match (wrong, &story) {
            (0, Some(story)) => format!(
                "everything answers {}: {} hops in {seconds:.1} s",
                machine(story.kind),
                story.hops.len()
            ),
            (0, None) => format!(
                "nothing is wrong with the set-up, as far as it can be seen without a packet; {}",
                further()
            ),
            (1, _) => "1 thing is wrong".to_owned(),
            (count, _) => format!("{count} things are wrong"),
        });
    }
    Ok(if wrong == 0 { Exit::Fine } else { Exit::Wrong })
}

fn further() -> &'static str {
    "bootstorm doctor --as uefi boots against it"
}

/// What the running server says.
fn ask_server(client: &Client) -> Result<Running, String> {
    let images = client.get("/v1/images").map_err(|error| error.to_string())?;
    let not_ready = match client.text("/readyz") {
        Ok(_) => None,
        Err(ClientError::Refused { detail, .. }) => Some(detail),
        Err(error) => Some(error.to_string()),
    };
    Ok(Running { images, not_ready })
}

/// The server's counters of DHCP messages left without an answer, by reason.
fn drops(client: &Client) -> BTreeMap<String, u64> {
    let text = client.text("/metrics").unwrap_or_default();
    let of_line = |line: &str| {
        let (name, count) = line.rsplit_once(' ')?;
        let reason = name.strip_prefix("bootstorm_dhcp_drops_total{reason=\"")?.strip_suffix("\"}")?;
        Some((reason.to_owned(), count.parse().ok()?))
    };
    text.lines().filter_map(of_line).collect()
}

/// What is to be acted; a finding where nothing can be, and it is plain why.
fn ask(
    plan: &Plan,
    doctor: &Doctor,
    catalog: Option<&Catalog>,
    here: bool,
) -> Result<Result<Ask, Finding>, Failure> {
    let usage = |message: String| Failure::new(Exit::Usage, message);
    let own = |address: Ipv4Addr| {
        interfaces::list().unwrap_or_default().iter().any(|link| link.addr == Some(address))
    };
    let (way, server) = match doctor.relay {
        Some(relay) if own(relay) => {
            let server = doctor.server.or(Some(relay).filter(|_| here)).ok_or_else(|| {
                usage("this host is that relay: name the server it forwards to with --server".into())
            })?;
            (Way::RelayIsHere { relay }, Some(server))
        }
        Some(relay) if here => {
            let Some(interface) = standing::way_to(relay) else {
                let subnets = plan.dhcp.subnets.iter().map(|subnet| subnet.network);
                let network = subnets.into_iter().find(|network| values::contains(*network, relay));
                let network = network
                    .map_or_else(|| format!("{relay}/32"), |network| format!("{}/{}", network.0, network.1));
                return Ok(Err(Finding::wrong(
                    "no-route-to-relay",
                    format!("this host knows no way to the relay {relay}"),
                    "the server's answers to machines behind that relay are lost here",
                    format!("ip route add {network} via ROUTER, or a default route"),
                )));
            };
            let server = doctor.server.or(interface.addr);
            (Way::RelayFromServer { interface, relay }, server)
        }
        Some(relay) => {
            return Err(usage(format!(
                "{relay} is no address of this host, and no server runs here: run it on the server, or on the relay with --server"
            )));
        }
        None => {
            let interface = standing::interface(plan, doctor.interface.as_deref()).map_err(usage)?;
            let server = doctor.server.or(interface.addr.filter(|_| here));
            (Way::Frames { interface, here }, server)
        }
    };
    let kind = match doctor.as_kind {
        Some(FirmwareKind::Bios) => Kind::Bios,
        Some(FirmwareKind::Uefi) | None => Kind::Uefi,
        Some(FirmwareKind::Http) => Kind::Http,
        Some(FirmwareKind::Ipxe) => Kind::Ipxe,
    };
    // The loader of the machine's own firmware first: it is what is fetched where the boot itself does not.
    let of_kind = if kind == Kind::Bios { &plan.loaders.bios } else { &plan.loaders.uefi_x64 };
    let names = of_kind.iter().chain(&plan.loaders.bios).chain(&plan.loaders.uefi_x64);
    let there = |name: &&String| catalog.is_none_or(|catalog| catalog.loaders().find(name).is_some());
    Ok(Ok(Ask {
        kind,
        way,
        server,
        dhcp: (plan.dhcp.port, plan.dhcp.boot_server_port),
        tftp: plan.tftp.listen.first().map(|addr| addr.port()),
        http: plan.http.listen.first().map(|addr| addr.port()),
        loaders: names.filter(there).cloned().collect(),
        image: catalog.and_then(|catalog| image(plan, catalog)),
    }))
}

/// The largest file of the first image that anybody may fetch: nothing that is fetched of it moves a job.
fn image(plan: &Plan, catalog: &Catalog) -> Option<ImageFile> {
    let mut images = catalog
        .list()
        .iter()
        .filter(|image| image.unbootable.is_none() && image.boot.is_some() && image.access == Access::Open);
    let image = images.next()?;
    let file = image.files.iter().max_by_key(|file| file.len).filter(|file| file.len > 0)?;
    let path = plan.images_dir.join(&image.name).join(&file.name);
    let opened = File::open(path).ok()?;
    let part = file.len.min(IMAGE_PART);
    let read = |at: u64| -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; part as usize];
        opened.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    };
    Some(ImageFile {
        path: format!("{}/{}", image.name, file.name),
        len: file.len,
        first: read(0).ok()?,
        last: read(file.len - part).ok()?,
    })
}

fn print(findings: &[Finding], story: Option<&Story>, verbose: bool) {
    if let Some(story) = story {
        output::line(format!("as {}, {}:", story.kind.word(), story.mac));
        for hop in &story.hops {
            output::line(format!(
                "{:>9.3} s  {:<12} {}",
                hop.at_ms as f64 / 1000.0,
                hop.name,
                output::plain(&hop.note)
            ));
        }
        for answerer in &story.answerers {
            output::line(offered(answerer));
        }
    }
    for finding in findings.iter().filter(|finding| verbose || finding.level != Level::Fine) {
        output::line(format!(
            "{:<6} {}: {}",
            finding.level.word(),
            finding.name,
            output::plain(&finding.what)
        ));
        if !finding.cause.is_empty() {
            output::line(format!("       likely: {}", output::plain(&finding.cause)));
        }
        if !finding.mend.is_empty() {
            output::line(format!("       mend: {}", output::plain(&finding.mend)));
        }
    }
}

fn offered(answerer: &Answerer) -> String {
    let mut what = Vec::new();
    if let Some(address) = answerer.address {
        what.push(format!("address {address}{}", if answerer.wins_address { " (taken)" } else { "" }));
    }
    if !answerer.file.is_empty() || answerer.boots {
        let file = if answerer.file.is_empty() { "a boot" } else { answerer.file.as_str() };
        let from = answerer.next_server.map(|next| format!(" from {next}")).unwrap_or_default();
        what.push(format!("{}{from}{}", output::plain(file), if answerer.wins { " (taken)" } else { "" }));
    }
    let whose = if answerer.ours { "this server" } else { "another server" };
    format!("  offer of {} ({whose}) after {} ms: {}", answerer.server, answerer.after_ms, what.join(", "))
}
