//! What can be seen without a packet: configuration, files, ports, limits, the clock.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::{Finding, certificate};
use crate::config::{DhcpMode, Driver, Plan};
use crate::files::catalog::Catalog;
use crate::files::loader_facts::{self, Facts, What};
use crate::files::loaders::{Family, Loader, family_of_name};
use crate::jobs::image::{Image, Images};
use crate::sys::host::{self, Listening, Owner};
use crate::sys::interfaces::{self, Interface};
use crate::sys::uring::SendRing;

/// Below this a database cannot be relied on, and an image not be added.
const ROOM_MIN: u64 = 16 << 20;
const ROOM_LOW: u64 = 256 << 20;
const FILES_MIN: u64 = 64;
/// No program of this kind existed before: a clock that says so has not been set.
const EARLIEST: u64 = 1_735_689_600;
/// Fewer descriptors than this are fewer connections than a hall has machines.
const DESCRIPTORS_MIN: u64 = 4096;

/// What the running server says of itself, as far as it answers.
#[derive(Clone, Debug, Default)]
pub struct Running {
    /// Its images (`/v1/images`).
    pub images: Value,
    /// Why it is not ready, if it is not.
    pub not_ready: Option<String>,
}

/// What is looked at.
pub struct Setup<'a> {
    /// The configuration.
    pub plan: &'a Plan,
    /// The library as its folders are now, or why there is none.
    pub catalog: Result<&'a Catalog, String>,
    /// The running server, if one answers; why not otherwise.
    pub server: Result<Running, String>,
    /// The server is not in this network namespace, or not on this host: its ports and interfaces cannot be seen.
    pub elsewhere: bool,
    /// Machines have Secure Boot on.
    pub secure_boot: bool,
    /// A certificate to judge, if there is one.
    pub certificate: Option<PathBuf>,
    /// The time.
    pub now: SystemTime,
}

/// Looks at everything, in the order in which it is needed.
pub fn check(setup: &Setup<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    for note in &setup.plan.notes {
        found.push(Finding::note("config", note.clone(), "bootstorm config check"));
    }
    let all = interfaces::list().unwrap_or_default();
    let listening = host::listening();
    found.extend(server(setup, &listening));
    if setup.elsewhere {
        found.push(Finding::fine("ports", "not looked at: the server is in another network namespace"));
    } else {
        found.extend(links(setup.plan, &all));
        found.extend(ports(setup, &listening));
    }
    found.extend(ring(setup.plan));
    found.extend(limits(setup));
    found.extend(clock(setup));
    found.extend(disk(setup.plan));
    match &setup.catalog {
        Ok(catalog) => {
            found.extend(loaders(setup, catalog));
            found.extend(images(setup, catalog));
        }
        Err(why) => found.push(Finding::wrong(
            "no-images-folder",
            why.clone(),
            "the folder is not there, or this user may not read it",
            format!("mkdir -p {}, or [images] dir", setup.plan.images_dir.display()),
        )),
    }
    found.extend(certificates(setup, &all));
    found
}

fn links(plan: &Plan, all: &[Interface]) -> Vec<Finding> {
    if plan.dhcp.mode == DhcpMode::Off {
        return Vec::new();
    }
    let mut found = Vec::new();
    for name in &plan.server.interfaces {
        let Some(link) = all.iter().find(|link| link.name == *name) else {
            let have: Vec<&str> = all.iter().map(|link| link.name.as_str()).collect();
            found.push(Finding::wrong(
                "no-interface",
                format!("there is no interface {name} here"),
                format!("[server] interfaces names it; this host has {}", have.join(", ")),
                "ip -br link; then [server] interfaces",
            ));
            continue;
        };
        if !link.running {
            found.push(Finding::wrong(
                "interface-down",
                format!("{name} has no link"),
                "the cable, the switch port, or the interface is down",
                format!("ip link set {name} up; then look at the cable"),
            ));
        } else if link.addr.is_none() {
            found.push(Finding::wrong(
                "no-own-address",
                format!("{name} has no IPv4 address"),
                "machines on it cannot be answered",
                format!("ip addr add ADDRESS/LENGTH dev {name}"),
            ));
        } else {
            found.push(Finding::fine("interface", format!("{name} is up")));
        }
    }
    for subnet in &plan.dhcp.subnets {
        let Some(next) = subnet.next_server else { continue };
        if !all.iter().any(|link| link.addr == Some(next)) {
            found.push(Finding::note(
                "next-server-elsewhere",
                format!("next_server {next} is no address of this host"),
                "right only where another server has the loaders; else take next_server out of [[dhcp.subnet]]",
            ));
        }
    }
    found
}

fn server(setup: &Setup<'_>, listening: &[Listening]) -> Vec<Finding> {
    match &setup.server {
        Ok(Running { not_ready: Some(why), .. }) => vec![Finding::wrong(
            "not-ready",
            format!("the server runs and is not ready: {why}"),
            "what it has to store it cannot store: the disk is full or broken",
            "df -h; journalctl -u bootstorm",
        )],
        Ok(_) => vec![Finding::fine("server", "it runs and is ready")],
        Err(why) => {
            let ours = listening
                .iter()
                .any(|port| setup.plan.http.listen.iter().any(|addr| port.tcp && port.port == addr.port()));
            // Ports that are taken by somebody else say it better.
            match ours {
                true => Vec::new(),
                false => vec![Finding::note("not-running", why.clone(), "bootstorm serve")],
            }
        }
    }
}

/// One port the server needs.
struct Needed {
    tcp: bool,
    port: u16,
    key: &'static str,
    what: &'static str,
}

fn ports(setup: &Setup<'_>, listening: &[Listening]) -> Vec<Finding> {
    let plan = setup.plan;
    let mut needed = Vec::new();
    if plan.dhcp.mode != DhcpMode::Off {
        needed.push(Needed { tcp: false, port: plan.dhcp.port, key: "[dhcp] port", what: "DHCP" });
        let port = plan.dhcp.boot_server_port;
        needed.push(Needed { tcp: false, port, key: "[dhcp] boot_server_port", what: "PXE" });
    }
    needed.extend(plan.tftp.listen.iter().map(|addr| Needed {
        tcp: false,
        port: addr.port(),
        key: "[tftp] listen",
        what: "TFTP",
    }));
    needed.extend(plan.https.listen.iter().map(|addr| Needed {
        tcp: true,
        port: addr.port(),
        key: "[https] listen",
        what: "HTTPS",
    }));
    needed.extend(plan.http.listen.iter().map(|addr| Needed {
        tcp: true,
        port: addr.port(),
        key: "[http] listen",
        what: "HTTP",
    }));
    let taken: Vec<Listening> = listening
        .iter()
        .filter(|held| needed.iter().any(|need| need.tcp == held.tcp && need.port == held.port))
        .copied()
        .collect();
    let owners = host::owners(&taken);
    // A server's file may have another name, and then this one has it too.
    let mine = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    let ours = ["bootstorm", mine.trim_end()];
    let mut found = Vec::new();
    for need in needed.iter().filter(|need| need.port != 0) {
        let protocol = if need.tcp { "TCP" } else { "UDP" };
        let held = taken.iter().any(|held| held.tcp == need.tcp && held.port == need.port);
        let owner = owners.get(&(need.tcp, need.port));
        let foreign = owner.filter(|owner| !ours.contains(&owner.name.as_str()));
        match (held, foreign) {
            // In proxy mode the raw socket hears what the other server's socket hears.
            (true, Some(Owner { name, pid })) if need.key == "[dhcp] port" && plan.dhcp.mode == DhcpMode::Proxy => {
                found.push(Finding::fine("port", format!("UDP {} is {name}'s ({pid}), as proxy mode allows", need.port)));
            }
            (true, Some(Owner { name, pid })) => found.push(Finding::wrong(
                "port-taken",
                format!("{protocol} {} ({}) is taken by {name}, process {pid}", need.port, need.what),
                "two programs cannot have one port: machines reach the other one, or the server does not start",
                format!("systemctl disable --now {name}, or another port in {}", need.key),
            )),
            (false, _) if setup.server.is_ok() => found.push(Finding::wrong(
                "port-not-open",
                format!("nobody has {protocol} {} ({}), and the server runs", need.port, need.what),
                "it runs with another configuration, or in another network namespace",
                "bootstorm doctor with the server's own --config; then restart it",
            )),
            (false, _) => found.push(Finding::fine("port", format!("{protocol} {} is free", need.port))),
            (true, None) => found.push(Finding::fine("port", format!("{protocol} {} is open", need.port))),
        }
    }
    if setup.server.is_err()
        && let Some(bits) = host::capabilities()
    {
        let lacks = |capability: u32| bits & (1 << capability) == 0;
        let low = needed.iter().any(|need| need.port < 1024);
        let mut missing = Vec::new();
        if lacks(host::BIND_SERVICE) && low {
            missing.push("CAP_NET_BIND_SERVICE");
        }
        if lacks(host::NET_RAW) && plan.dhcp.mode != DhcpMode::Off {
            missing.push("CAP_NET_RAW");
        }
        if !missing.is_empty() {
            found.push(Finding::note(
                "capabilities",
                format!("this user could not run the server: it lacks {}", missing.join(" and ")),
                "run it as root, or: setcap cap_net_raw,cap_net_bind_service+ep $(command -v bootstorm)",
            ));
        }
    }
    found
}

fn ring(plan: &Plan) -> Vec<Finding> {
    if plan.server.driver == Driver::Mio {
        return Vec::new();
    }
    match SendRing::new(8) {
        Ok(_) => vec![Finding::fine("io_uring", "it can be had")],
        Err(error) if plan.server.driver == Driver::Auto => {
            vec![Finding::fine("io_uring", format!("refused ({error}); the server does without"))]
        }
        Err(error) => vec![Finding::wrong(
            "io-uring-refused",
            format!("io_uring is refused: {error}"),
            "[server] driver asks for it, so the server does not start",
            "sysctl kernel.io_uring_disabled=0, or [server] driver = \"auto\"",
        )],
    }
}

fn limits(setup: &Setup<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    let files = host::open_files();
    if files.hard < DESCRIPTORS_MIN {
        found.push(Finding::note(
            "open-files",
            format!("a process may have {} open files, and every connection is one", files.hard),
            "LimitNOFILE=65536 in the unit, or ulimit -n",
        ));
    } else {
        found.push(Finding::fine("limits", format!("{} open files", files.hard)));
    }
    let locked = host::locked_memory();
    found.push(Finding::fine(
        "limits",
        match locked.soft {
            u64::MAX => "locked memory without limit".to_owned(),
            bytes => format!("{} KiB of locked memory", bytes >> 10),
        },
    ));
    // Only the first network namespace has the number; it holds for all of them together.
    let neighbours = std::fs::read_to_string("/proc/sys/net/ipv4/neigh/default/gc_thresh3")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    let pool: u64 = setup
        .plan
        .dhcp
        .subnets
        .iter()
        .filter_map(|subnet| subnet.range)
        .map(|(first, last)| u64::from(u32::from(last)).saturating_sub(u64::from(u32::from(first))) + 1)
        .sum();
    if let Some(most) = neighbours.filter(|most| *most < pool) {
        found.push(Finding::note(
            "neighbour-table",
            format!("the kernel remembers {most} neighbours, and the pools have {pool} addresses"),
            format!(
                "sysctl net.ipv4.neigh.default.gc_thresh3={0} net.ipv4.neigh.default.gc_thresh2={0}",
                pool.saturating_mul(2).next_power_of_two()
            ),
        ));
    }
    found
}

fn clock(setup: &Setup<'_>) -> Vec<Finding> {
    let unix = setup.now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if unix < EARLIEST {
        let shown = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(unix));
        return vec![Finding::wrong(
            "clock-1970",
            format!("this host's clock says {}", shown.get(5..16).unwrap_or(&shown)),
            "it was never set: tokens, certificates and jobs' times are judged by it",
            "timedatectl set-ntp true, or date -s; hwclock -w keeps it",
        )];
    }
    let kept = match host::clock_is_kept() {
        Some(true) => "set and kept by a time service",
        Some(false) => "set, and kept by nobody",
        None => "set",
    };
    vec![Finding::fine("clock", kept)]
}

fn disk(plan: &Plan) -> Vec<Finding> {
    let mut found = Vec::new();
    for (what, path) in [("state", &plan.server.state_dir), ("images", &plan.images_dir)] {
        // A folder of our own is made with the first start.
        let Some(room) = nearest(path).and_then(|path| host::room(path).ok()) else { continue };
        let path = path.display();
        if what == "images" && room.read_only {
            // Nothing is to be put there.
            found.push(Finding::fine("disk", "images: read-only"));
            continue;
        }
        let mend = format!(
            "df -h {path}; free some, or move [{}]",
            if what == "state" { "server] state_dir" } else { "images] dir" }
        );
        let mend = mend.replace("dir]", "dir");
        let is_full = room.bytes < ROOM_MIN || room.files_total > 0 && room.files < FILES_MIN;
        if is_full && what == "images" {
            found.push(Finding::note(
                "low-disk",
                format!(
                    "{path} (images) is full: no image can be added or changed; machines boot all the same"
                ),
                mend,
            ));
        } else if room.bytes < ROOM_MIN {
            found.push(Finding::wrong(
                "full-disk",
                format!("{path} ({what}) has {} KiB left", room.bytes >> 10),
                "jobs and boots cannot be stored, so no job is given to any machine",
                mend,
            ));
        } else if room.files_total > 0 && room.files < FILES_MIN {
            found.push(Finding::wrong(
                "full-disk",
                format!("{path} ({what}) has room for {} more files", room.files),
                "the file system is out of inodes: nothing new can be stored",
                mend,
            ));
        } else if room.bytes < ROOM_LOW {
            found.push(Finding::note(
                "low-disk",
                format!("{path} ({what}) has {} MiB left", room.bytes >> 20),
                mend,
            ));
        } else {
            found.push(Finding::fine("disk", format!("{what}: {} MiB left", room.bytes >> 20)));
        }
    }
    found
}

fn nearest(path: &Path) -> Option<&Path> {
    path.ancestors().find(|path| path.exists())
}

fn loaders(setup: &Setup<'_>, catalog: &Catalog) -> Vec<Finding> {
    let mut found = Vec::new();
    let table = catalog.loaders();
    let folders: Vec<String> = setup.plan.loaders.dirs.iter().map(|dir| dir.display().to_string()).collect();
    let wanted = &setup.plan.loaders;
    for (family, names, machines, needed) in [
        (Family::Bios, &wanted.bios, "BIOS", true),
        (Family::UefiX64, &wanted.uefi_x64, "UEFI x64", true),
        (Family::UefiIa32, &wanted.uefi_ia32, "UEFI IA32", false),
        (Family::UefiArm64, &wanted.uefi_arm64, "UEFI ARM64", false),
    ] {
        let Some(loader) = table.for_family(family) else {
            if needed {
                found.push(Finding::wrong(
                    "missing-loader",
                    format!(
                        "{machines} machines get no loader (PXE-E53): none of {} is in {}",
                        names.join(", "),
                        folders.join(", ")
                    ),
                    "iPXE is not installed, or is in another folder",
                    "apt-get install ipxe, or [loaders] dirs",
                ));
            }
            continue;
        };
        let https = !setup.plan.https.listen.is_empty();
        found.extend(judge_loader(loader, machines, setup.secure_boot, https));
    }
    for image in catalog.list() {
        found.extend(own_loaders(setup.plan, catalog, image));
    }
    found
}

fn judge_loader(loader: &Loader, machines: &str, secure_boot: bool, https: bool) -> Vec<Finding> {
    let path = loader.served.path();
    let shown = path.display();
    let facts = match loader_facts::read(path) {
        Ok(facts) => facts,
        Err(error) => {
            return vec![Finding::wrong(
                "loader-unreadable",
                format!("{shown}: {error}"),
                "it is listed, and cannot be given to any machine",
                format!("ls -l {shown}"),
            )];
        }
    };
    let version = facts.version.as_ref().map_or(String::new(), |version| format!(" {version}"));
    let can = match &facts.features {
        Some(features) if !features.is_empty() => format!(", can {}", features.join(" ")),
        _ => String::new(),
    };
    let signed = match facts.signed_by.as_slice() {
        [] => String::new(),
        names => format!(", signed by {}", names.join(", ")),
    };
    let mut found = vec![Finding::fine(
        "loader",
        format!(
            "{machines}: {shown}, {}{version}, {} bytes, blake3 {}{can}{signed}",
            facts.what.word(),
            facts.len,
            facts.blake3.get(..16).unwrap_or_default(),
        ),
    )];
    if facts.what == What::Ipxe && facts.lacks("http") {
        found.push(Finding::wrong(
            "loader-without-http",
            format!("{shown}, the loader of {machines} machines, is an iPXE that cannot fetch by HTTP"),
            "it was built without DOWNLOAD_PROTO_HTTP, so it cannot get its script",
            "apt-get install ipxe, or build it with HTTP; bootstorm doctor --verbose shows what each can do",
        ));
    }
    if https && facts.what == What::Ipxe {
        let loader = format!("{shown}, the loader of {machines} machines,");
        found.extend(cannot_https(&loader, &facts));
    }
    if secure_boot && facts.cpu.is_some() && facts.signed_by.is_empty() {
        found.push(Finding::wrong(
            "unsigned-loader",
            format!("{shown}, the loader of {machines} machines, is not signed"),
            "with Secure Boot on firmware refuses it (Access Denied, Security Violation)",
            "put a signed shim and the iPXE it starts into a folder of [loaders] dirs and first in its list, or switch Secure Boot off",
        ));
    }
    found
}

/// What keeps a loader from fetching by HTTPS here, where there is HTTPS. Nothing that keeps a machine from booting: what
/// it is told names `http` URLs unless it asked by HTTPS itself.
fn cannot_https(loader: &str, facts: &Facts) -> Option<Finding> {
    const MEND: &str = "nothing, where scripts and images go by http://; else an iPXE of 2024 or later, built with \
                        DOWNLOAD_PROTO_HTTPS and TRUST=ca.pem (bootstorm https ca)";
    if facts.features.is_none() {
        return Some(Finding::note(
            "loader-https-unknown",
            format!(
                "{loader} does not show whether it fetches by https:// (builds for BIOS do not, as they come)"
            ),
            MEND,
        ));
    }
    if facts.lacks("https") {
        return Some(Finding::note(
            "loader-without-https",
            format!("{loader} cannot fetch by https://: it says \"Operation not supported\" to such a URL"),
            MEND,
        ));
    }
    facts.lacks("ecdhe").then(|| {
        Finding::note(
            "loader-https-too-old",
            format!(
                "{loader} is an iPXE of before 2024-01-30, whose TLS has RSA and DHE for the exchange of keys: no handshake \
                 with this server, which has ECDHE only (bootstorm_https_handshakes_total{{outcome=\"incompatible\"}})"
            ),
            MEND,
        )
    })
}

/// Loaders in an image's folder, as GSS/DS has them, beside those of the loader folders.
fn own_loaders(plan: &Plan, catalog: &Catalog, image: &Image) -> Vec<Finding> {
    let mut found = Vec::new();
    for file in &image.files {
        let base = file.name.rsplit('/').next().unwrap_or_default();
        if family_of_name(base).is_none() {
            continue;
        }
        let path = plan.images_dir.join(&image.name).join(&file.name);
        let (Ok(own), Some(other)) = (loader_facts::read(&path), catalog.loaders().find(base)) else {
            continue;
        };
        if loader_facts::read(other.served.path()).is_ok_and(|facts| facts.blake3 != own.blake3) {
            found.push(Finding::note(
                "loader-differs",
                format!(
                    "image {} has a {base} of its own, other than {}",
                    image.name,
                    other.served.path().display()
                ),
                format!("cp {} {}, unless it is meant", other.served.path().display(), path.display()),
            ));
        }
    }
    found
}

fn images(setup: &Setup<'_>, catalog: &Catalog) -> Vec<Finding> {
    let mut found = Vec::new();
    for image in catalog.list() {
        if let Some(reason) = &image.unbootable {
            found.push(unbootable(setup.plan, image, reason));
        }
        for warning in &image.warnings {
            found.push(Finding::note(
                "image-warning",
                format!("image {}: {warning}", image.name),
                format!("bootstorm image show {}", image.name),
            ));
        }
    }
    if catalog.list().is_empty() {
        found.push(Finding::note(
            "no-images",
            format!("there is no image in {}", setup.plan.images_dir.display()),
            "a folder with a kernel, a WIM, an ISO or an EFI program in it is one",
        ));
    }
    found.extend(stale(setup, catalog));
    found
}

fn unbootable(plan: &Plan, image: &Image, reason: &str) -> Finding {
    let name = &image.name;
    let folder = plan.images_dir.join(name);
    let folder = folder.display();
    if reason.contains("wimboot") && (reason.contains("no wimboot") || reason.contains("another processor")) {
        return Finding::wrong(
            "missing-wimboot",
            format!("image {name} cannot boot: {reason}"),
            "iPXE starts Windows PE through wimboot",
            format!(
                "cp wimboot '{folder}/', or into a folder of [loaders] dirs (github.com/ipxe/wimboot has it)"
            ),
        );
    }
    if reason.contains("truncated") {
        return Finding::wrong(
            "truncated-wim",
            format!("image {name} cannot boot: {reason}"),
            "copying it broke off, or is still under way",
            format!(
                "copy it again into {folder} under another name, then mv; wimlib-imagex verify shows whether it is whole"
            ),
        );
    }
    Finding::wrong(
        "image-cannot-boot",
        format!("image {name} cannot boot: {reason}"),
        "it is listed, and offered to no machine",
        format!("bootstorm image show {name}"),
    )
}

/// Files the running server knows otherwise than the disk has them.
fn stale(setup: &Setup<'_>, catalog: &Catalog) -> Vec<Finding> {
    let Ok(running) = &setup.server else { return Vec::new() };
    let Some(listed) = running.images["images"].as_array() else { return Vec::new() };
    let published: BTreeMap<&str, BTreeMap<&str, u64>> = listed
        .iter()
        .filter_map(|image| {
            let files = image["files"].as_array()?.iter();
            let files = files.filter_map(|file| Some((file["name"].as_str()?, file["len"].as_u64()?)));
            Some((image["name"].as_str()?, files.collect()))
        })
        .collect();
    let mut found = Vec::new();
    for image in catalog.list() {
        let known = published.get(image.name.as_str());
        let differs = |file: &crate::jobs::image::ImageFile| {
            known.and_then(|files| files.get(file.name.as_str())) != Some(&file.len)
        };
        if let Some(file) = image.files.iter().find(|file| differs(file)) {
            found.push(Finding::note(
                "stale-image",
                format!("image {}: the running server does not serve {} as it is on the disk", image.name, file.name),
                "a file is published a few seconds after its last change; replace images by mv, never in place",
            ));
        }
    }
    found
}

fn certificates(setup: &Setup<'_>, all: &[Interface]) -> Vec<Finding> {
    let Some(file) = &setup.certificate else { return Vec::new() };
    let shown = file.display().to_string();
    let addresses: Vec<IpAddr> = all
        .iter()
        .filter(|link| {
            setup.plan.server.interfaces.is_empty() || setup.plan.server.interfaces.contains(&link.name)
        })
        .filter_map(|link| link.addr)
        .filter(|addr| !addr.is_loopback())
        .map(IpAddr::V4)
        .collect();
    match std::fs::read(file) {
        Ok(pem) => certificate::check(&shown, &pem, &addresses, setup.now),
        Err(error) => vec![Finding::wrong(
            "certificate-unreadable",
            format!("{shown}: {error}"),
            "the file is not there, or this user may not read it",
            format!("ls -l {shown}"),
        )],
    }
}

/// Whether the server of this configuration listens in this network namespace.
pub fn is_here(plan: &Plan) -> bool {
    let listening = host::listening();
    let has =
        |tcp: bool, port: u16| listening.iter().any(|held| held.tcp == tcp && held.port == port && port != 0);
    plan.http.listen.iter().any(|addr| has(true, addr.port()))
        || plan.tftp.listen.iter().any(|addr| has(false, addr.port()))
        || plan.dhcp.mode != DhcpMode::Off && has(false, plan.dhcp.boot_server_port)
}

/// The interface a machine is to be acted on: the named one, the server's, or the only one that can be meant.
///
/// # Errors
/// One line that says what to name.
pub fn interface(plan: &Plan, named: Option<&str>) -> Result<Interface, String> {
    let all = interfaces::list().map_err(|error| format!("list interfaces: {error}"))?;
    let have = || all.iter().map(|link| link.name.clone()).collect::<Vec<_>>().join(", ");
    if let Some(name) = named {
        let found = all.iter().find(|link| link.name == name);
        return found
            .cloned()
            .ok_or_else(|| format!("there is no interface {name} here; there are {}", have()));
    }
    let usable = |link: &&Interface| link.running && link.device != interfaces::Device::Loopback;
    let of_plan = all.iter().filter(usable).find(|link| plan.server.interfaces.contains(&link.name));
    if let Some(link) = of_plan {
        return Ok(link.clone());
    }
    let physical = |link: &&Interface| link.device == interfaces::Device::Physical && link.addr.is_some();
    let some = all.iter().filter(usable).filter(physical).collect::<Vec<_>>();
    let any: Vec<&Interface> = all.iter().filter(usable).collect();
    match (some.as_slice(), any.as_slice()) {
        ([link, ..], _) | (_, [link]) => Ok((*link).clone()),
        _ => Err(format!("name the machines' interface with --interface; there are {}", have())),
    }
}

/// The interface whose network has this address, or leads there; `None` when there is no way.
pub fn way_to(address: Ipv4Addr) -> Option<Interface> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((address, 67)).ok()?;
    let IpAddr::V4(own) = socket.local_addr().ok()?.ip() else { return None };
    interfaces::list().ok()?.into_iter().find(|link| link.addr == Some(own))
}
