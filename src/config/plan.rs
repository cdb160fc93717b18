//! The resolved configuration, and the checks that need more than one value.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::keys::KEYS;
use super::read::{Entry, Origin, Problem, Value};
use super::values;
use crate::jobs::admission::Limits;
use crate::jobs::script::{MenuDefault, Policy, Unknown};
use crate::wire::{MacAddr, MacPattern, Uuid};

/// Firmware repeats its DISCOVER after two to four seconds, and gives up after four.
const PROBE_MAX: Duration = Duration::from_secs(2);
/// What a `dhcp_option` looks like.
const OPTION_EXPECTED: &str = "options such as \"150=10.77.0.1\", \"12=text:lab\" or \"252=hex:0a0b\", of codes that this \
                               server does not set itself";

/// Where DHCP clients are answered (RFC 2131, 4.1).
const CLIENT_PORT: u16 = 68;

/// Which senders may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// io_uring where it is to be had.
    Auto,
    /// io_uring, or no start.
    Uring,
    /// Without.
    Mio,
}

/// Whether files may leave from where they are in memory, without a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ZeroCopy {
    /// Until a device is known to copy them after all.
    Auto,
    /// Never.
    Off,
    /// Also where it copies: for measuring the sender alone.
    Always,
}

/// Whether packets may come and go as frames of our own, past the host's IP stack and its packet filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Frames {
    /// Where no packet filter is in force.
    Auto,
    /// Whatever filter there is.
    On,
    /// Never.
    Off,
}

/// Whether the server is held to its own folders, ports and system calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sandbox {
    /// As far as the kernel can.
    Auto,
    /// All of it, or no start.
    On,
    /// Not at all.
    Off,
}

/// What DHCP does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DhcpMode {
    /// Boot data beside another server's addresses.
    Proxy,
    /// Addresses too.
    Full,
    /// Nothing.
    Off,
}

/// `[server]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerPlan {
    /// Interfaces by name; empty chooses.
    pub interfaces: Vec<String>,
    /// Where state lives.
    pub state_dir: PathBuf,
    /// Senders.
    pub driver: Driver,
    /// `[server] zero_copy`
    pub zero_copy: ZeroCopy,
    /// Loops; 0 is one per core.
    pub cores: usize,
    /// User to become; empty stays.
    pub user: String,
    /// Held to its own.
    pub sandbox: Sandbox,
    /// Reload when the file changes.
    pub watch_config: bool,
}

/// One `[[dhcp.subnet]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubnetPlan {
    /// Address and prefix length.
    pub network: (Ipv4Addr, u8),
    /// First and last address given out.
    pub range: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Option 3.
    pub router: Option<Ipv4Addr>,
    /// Option 6.
    pub dns: Vec<Ipv4Addr>,
    /// Lease time.
    pub lease: Duration,
    /// The boot server named to clients there.
    pub next_server: Option<Ipv4Addr>,
    /// Option 15.
    pub domain: Option<String>,
    /// Further options: code and body.
    pub options: Vec<(u8, Vec<u8>)>,
    /// The loader of PXE firmware there.
    pub loader: Option<String>,
}

/// What a machine with a reservation is known by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReservedWho {
    /// Hardware address.
    Mac(MacAddr),
    /// SMBIOS UUID.
    Uuid(Uuid),
    /// Option 61.
    ClientId(Vec<u8>),
    /// A relay's circuit id.
    Circuit(Vec<u8>),
}

/// One `[[dhcp.reservation]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReservationPlan {
    /// Machine.
    pub who: ReservedWho,
    /// Its address.
    pub ip: Ipv4Addr,
}

/// `[dhcp]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DhcpPlan {
    /// What it does.
    pub mode: DhcpMode,
    /// Server port.
    pub port: u16,
    /// PXE boot server port.
    pub boot_server_port: u16,
    /// Wrong addresses are refused.
    pub authoritative: bool,
    /// Addresses for strangers behind one circuit.
    pub circuit_max: u32,
    /// How long an address is asked for before it is offered first; zero: it is not.
    pub probe: Duration,
    /// Relayed and unicast messages by frames.
    pub frames: Frames,
    /// Options for every subnet.
    pub options: Vec<(u8, Vec<u8>)>,
    /// Networks.
    pub subnets: Vec<SubnetPlan>,
    /// Fixed addresses.
    pub reservations: Vec<ReservationPlan>,
}

/// `[tftp]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TftpPlan {
    /// Listeners.
    pub listen: Vec<SocketAddrV4>,
    /// Largest block granted, bytes.
    pub max_blksize: u16,
    /// Largest window granted, blocks.
    pub max_windowsize: u16,
    /// Answer from the listening port.
    pub single_port: bool,
    /// By frames.
    pub frames: Frames,
}

/// `[http]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpPlan {
    /// Listeners.
    pub listen: Vec<SocketAddrV4>,
    /// The congestion control of both HTTP and HTTPS, by the kernel's name; empty leaves it to the engine.
    pub congestion: String,
}

/// `[https]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpsPlan {
    /// Listeners.
    pub listen: Vec<SocketAddrV4>,
    /// Chain and key, PEM; `None` is an own authority in the state folder.
    pub files: Option<(PathBuf, PathBuf)>,
}

/// `[loaders]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoaderPlan {
    /// Folders.
    pub dirs: Vec<PathBuf>,
    /// For BIOS.
    pub bios: Vec<String>,
    /// For x64 UEFI.
    pub uefi_x64: Vec<String>,
    /// For IA32 UEFI.
    pub uefi_ia32: Vec<String>,
    /// For ARM64 UEFI.
    pub uefi_arm64: Vec<String>,
    /// For WinPE images.
    pub wimboot: Vec<String>,
}

/// `[admin]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdminPlan {
    /// TCP listener.
    pub listen: Option<SocketAddr>,
    /// A machine with a job that is not seen within this raises an alarm; zero never.
    pub expect_within: Duration,
    /// Unix socket of the local commands.
    pub socket: PathBuf,
}

/// What the server is to do.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// `[server]`.
    pub server: ServerPlan,
    /// `[dhcp]`.
    pub dhcp: DhcpPlan,
    /// `[tftp]`.
    pub tftp: TftpPlan,
    /// `[http]`.
    pub http: HttpPlan,
    /// `[https]`.
    pub https: HttpsPlan,
    /// `[admission]`.
    pub admission: Limits,
    /// `images.dir`.
    pub images_dir: PathBuf,
    /// `images.trees`.
    pub image_trees: Vec<PathBuf>,
    /// `[loaders]`.
    pub loaders: LoaderPlan,
    /// `[policy]`.
    pub policy: Policy,
    /// `[admin]`.
    pub admin: AdminPlan,
    /// Things to know that are no mistakes.
    pub notes: Vec<String>,
    /// What is odd and may be meant.
    pub warnings: Vec<String>,
}

/// Takes values out of the layers, and remembers what makes no sense.
struct Taker<'a> {
    effective: &'a BTreeMap<&'static str, Entry>,
    problems: &'a mut Vec<Problem>,
}

impl Taker<'_> {
    fn entry(&self, path: &str) -> Entry {
        self.effective
            .get(path)
            .cloned()
            .unwrap_or(Entry { value: Value::Other("nothing"), origin: Origin::Default })
    }

    fn wrong(&mut self, path: &str, expected: impl Into<String>) {
        let entry = self.entry(path);
        self.problems.push(Problem {
            origin: entry.origin,
            key: path.to_owned(),
            found: entry.value.to_string(),
            expected: expected.into(),
        });
    }

    /// The value as `parse` understands it; when it does not, the default after a note of the problem.
    fn take<T>(
        &mut self,
        path: &'static str,
        expected: &str,
        parse: impl Fn(&Value) -> Option<T>,
    ) -> Option<T> {
        let entry = self.entry(path);
        if let Some(value) = parse(&entry.value) {
            return Some(value);
        }
        self.wrong(path, expected);
        KEYS.iter().find(|key| key.path == path).and_then(|key| parse(&key.default()))
    }

    fn text(&mut self, path: &'static str) -> String {
        self.take(path, "a text", |value| match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        })
        .unwrap_or_default()
    }

    fn flag(&mut self, path: &'static str) -> bool {
        self.take(path, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
        .unwrap_or_default()
    }

    fn number(&mut self, path: &'static str, min: i64, max: i64) -> i64 {
        let expected = format!("a whole number from {min} to {max}");
        self.take(path, &expected, |value| match value {
            Value::Integer(number) if (min..=max).contains(number) => Some(*number),
            _ => None,
        })
        .unwrap_or(min)
    }

    fn list(&mut self, path: &'static str) -> Vec<String> {
        self.take(path, "a list of texts", |value| match value {
            Value::List(list) => Some(list.clone()),
            _ => None,
        })
        .unwrap_or_default()
    }

    /// One of some words.
    fn word<T: Copy>(&mut self, path: &'static str, words: &[(&str, T)]) -> Option<T> {
        let expected = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        self.take(path, &format!("one of {expected}"), |value| match value {
            Value::Text(text) => words.iter().find(|(word, _)| word == text).map(|(_, meaning)| *meaning),
            _ => None,
        })
    }

    fn listen(&mut self, path: &'static str) -> Vec<SocketAddrV4> {
        let texts = self.list(path);
        let parsed: Vec<Option<SocketAddrV4>> = texts.iter().map(|text| text.trim().parse().ok()).collect();
        if parsed.contains(&None) {
            self.wrong(path, "IPv4 addresses with ports, such as \"0.0.0.0:4433\"");
        }
        parsed.into_iter().flatten().collect()
    }
}

/// Takes values out of one table of a list.
struct TableTaker<'a, 'p> {
    name: String,
    origin: &'a Origin,
    table: &'a BTreeMap<String, Entry>,
    problems: &'p mut Vec<Problem>,
}

impl TableTaker<'_, '_> {
    fn wrong(&mut self, key: &str, expected: &str) {
        let entry = self.table.get(key);
        self.problems.push(Problem {
            origin: entry.map_or(self.origin, |entry| &entry.origin).clone(),
            key: format!("{}.{key}", self.name),
            found: entry.map_or_else(|| "nothing".into(), |entry| entry.value.to_string()),
            expected: expected.to_owned(),
        });
    }

    fn take<T>(&mut self, key: &str, expected: &str, parse: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let parsed = parse(&self.table.get(key)?.value);
        if parsed.is_none() {
            self.wrong(key, expected);
        }
        parsed
    }

    fn text<T>(&mut self, key: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        self.take(key, expected, |value| match value {
            Value::Text(text) => parse(text),
            _ => None,
        })
    }

    fn needed<T>(&mut self, key: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        if !self.table.contains_key(key) {
            self.wrong(key, expected);
            return None;
        }
        self.text(key, expected, parse)
    }
}

type Lists = BTreeMap<String, Vec<(Origin, BTreeMap<String, Entry>)>>;

/// Builds the plan as far as it goes; the problems say whether it may be used.
pub(super) fn build(
    effective: &BTreeMap<&'static str, Entry>,
    lists: &Lists,
    problems: &mut Vec<Problem>,
) -> Plan {
    let (mut notes, mut warnings) = (Vec::new(), Vec::new());
    let mode = {
        let mut taker = Taker { effective, problems };
        taker
            .word(
                "dhcp.mode",
                &[("proxy", DhcpMode::Proxy), ("full", DhcpMode::Full), ("off", DhcpMode::Off)],
            )
            .unwrap_or(DhcpMode::Proxy)
    };
    let subnets = subnets(lists, mode, problems, &mut notes, &mut warnings);
    let reservations = reservations(lists, &subnets, mode, problems, &mut warnings);
    for subnet in subnets.iter().filter(|subnet| mode == DhcpMode::Full && subnet.range.is_none()) {
        let (addr, prefix) = subnet.network;
        if !reservations.iter().any(|reservation| values::contains(subnet.network, reservation.ip)) {
            warnings.push(format!(
                "[[dhcp.subnet]] {addr}/{prefix} has no range and no reservation: no machine gets an address there"
            ));
        }
    }
    let mut taker = Taker { effective, problems };
    if mode == DhcpMode::Full && subnets.is_empty() && !lists.contains_key("dhcp.subnet") {
        taker.wrong(
            "dhcp.mode",
            "at least one [[dhcp.subnet]] in full mode: without one there is no address to give",
        );
    }
    let state_dir = PathBuf::from(taker.text("server.state_dir"));
    if !state_dir.is_absolute() && state_dir.as_os_str().is_empty() {
        taker.wrong("server.state_dir", "a folder");
    }
    let port = taker.number("dhcp.port", 1, 65535) as u16;
    let boot_server_port = match taker.number("dhcp.boot_server_port", 0, 65535) as u16 {
        0 => port.checked_add(4011 - 67).unwrap_or_else(|| {
            if mode != DhcpMode::Off {
                taker.wrong(
                    "dhcp.port",
                    "a port up to 61591, or boot_server_port beside it: the boot server's is port + 3944",
                );
            }
            0
        }),
        given => given,
    };
    let mut frames = |path| {
        taker
            .word(path, &[("auto", Frames::Auto), ("on", Frames::On), ("off", Frames::Off)])
            .unwrap_or(Frames::Auto)
    };
    let (dhcp_frames, tftp_frames) = (frames("dhcp.frames"), frames("tftp.frames"));
    let tftp = TftpPlan {
        listen: taker.listen("tftp.listen"),
        max_blksize: taker.number("tftp.max_blksize", 8, 65464) as u16,
        max_windowsize: taker.number("tftp.max_windowsize", 1, 65535) as u16,
        single_port: taker.flag("tftp.single_port"),
        frames: tftp_frames,
    };
    let http = HttpPlan { listen: taker.listen("http.listen"), congestion: taker.text("http.congestion") };
    // Longer ones than 15 are not names of the kernel's (TCP_CA_NAME_MAX).
    let names_one = |name: &str| {
        name.len() < 16
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    };
    if !names_one(&http.congestion) {
        taker.wrong("http.congestion", "a name such as \"cubic\", or nothing");
    }
    let https = https(&mut taker, &http, &mut notes);
    let mut boots = |path| taker.number(path, 0, 100_000) as u32;
    let admission = Limits {
        per_image: boots("admission.per_image"),
        per_subnet: boots("admission.per_subnet"),
        per_link: boots("admission.per_link"),
    };
    let images_dir = match taker.text("images.dir") {
        text if text.is_empty() => state_dir.join("images"),
        text => PathBuf::from(text),
    };
    let dirs = match taker.list("loaders.dirs") {
        list if list.is_empty() => vec![state_dir.join("loaders"), PathBuf::from("/usr/lib/ipxe")],
        list => list.into_iter().map(PathBuf::from).collect(),
    };
    let mut names = |path| {
        let names = taker.list(path);
        if !names.iter().all(|name| values::loader(name)) {
            taker.wrong(path, "names of files below [loaders] dirs, such as \"ipxe.efi\", without \"..\" or a slash in front");
        }
        names
    };
    let loaders = LoaderPlan {
        dirs,
        bios: names("loaders.bios"),
        uefi_x64: names("loaders.uefi_x64"),
        uefi_ia32: names("loaders.uefi_ia32"),
        uefi_arm64: names("loaders.uefi_arm64"),
        wimboot: names("loaders.wimboot"),
    };
    let unknown = taker
        .word(
            "policy.unknown",
            &[
                ("menu", Unknown::Menu),
                ("local", Unknown::Local),
                ("wait", Unknown::Wait),
                ("pending", Unknown::Pending),
                ("silent", Unknown::Silent),
            ],
        )
        .unwrap_or_default();
    let menu_timeout = taker
        .take("policy.menu_timeout", "a time with its unit from 0s to 1h, such as \"15s\"", |value| {
            match value {
                Value::Text(text) => values::time(text).filter(|time| *time <= Duration::from_secs(3600)),
                _ => None,
            }
        })
        .unwrap_or_default();
    let menu_default = MenuDefault::from(taker.text("policy.menu_default"));
    let exclude: Vec<Option<MacPattern>> =
        taker.list("policy.exclude").iter().map(|text| text.parse().ok()).collect();
    if exclude.contains(&None) {
        taker.wrong(
            "policy.exclude",
            "MAC addresses, or their first bytes and a star, such as \"52:54:00:*\"",
        );
    }
    let exclude = exclude.into_iter().flatten().collect();
    let listen = taker
        .take("admin.listen", "an address with a port, such as \"127.0.0.1:8081\", or \"\"", |value| {
            match value {
                Value::Text(text) if text.is_empty() => Some(None),
                Value::Text(text) => text.parse().ok().map(Some),
                _ => None,
            }
        })
        .flatten();
    let expect_within = taker
        .take("admin.expect_within", "a time with its unit such as \"30m\", or \"0s\"", |value| match value {
            Value::Text(text) => values::time(text),
            _ => None,
        })
        .unwrap_or_default();
    let authoritative = taker.flag("dhcp.authoritative");
    let circuit_max = taker.number("dhcp.per_circuit", 0, 65_536) as u32;
    let probe = taker
        .take("dhcp.probe", "a time up to \"2s\" such as \"300ms\", or \"0s\"", |value| match value {
            Value::Text(text) => values::time(text).filter(|time| *time <= PROBE_MAX),
            _ => None,
        })
        .unwrap_or_default();
    let options: Vec<_> =
        taker.list("dhcp.dhcp_option").iter().map(|text| values::dhcp_option(text)).collect();
    if options.contains(&None) {
        taker.wrong("dhcp.dhcp_option", OPTION_EXPECTED);
    }
    let options = options.into_iter().flatten().collect();
    let interfaces = taker.list("server.interfaces");
    if !interfaces.iter().all(|name| values::interface(name)) {
        taker.wrong("server.interfaces", "names of interfaces such as \"eth1\", of 1 to 15 characters");
    }
    let server = ServerPlan {
        interfaces,
        driver: taker
            .word("server.driver", &[("auto", Driver::Auto), ("uring", Driver::Uring), ("mio", Driver::Mio)])
            .unwrap_or(Driver::Auto),
        zero_copy: taker
            .word(
                "server.zero_copy",
                &[("auto", ZeroCopy::Auto), ("off", ZeroCopy::Off), ("always", ZeroCopy::Always)],
            )
            .unwrap_or(ZeroCopy::Auto),
        cores: taker.number("server.cores", 0, 1024) as usize,
        user: taker.text("server.user"),
        sandbox: taker
            .word("server.sandbox", &[("auto", Sandbox::Auto), ("on", Sandbox::On), ("off", Sandbox::Off)])
            .unwrap_or(Sandbox::Auto),
        watch_config: taker.flag("server.watch_config"),
        state_dir: state_dir.clone(),
    };
    clashes(&mut taker, &tftp, &http, &https, listen, mode, (port, boot_server_port));
    Plan {
        server,
        dhcp: DhcpPlan {
            mode,
            port,
            boot_server_port,
            authoritative,
            circuit_max,
            probe,
            frames: dhcp_frames,
            options,
            subnets,
            reservations,
        },
        tftp,
        http,
        https,
        admission,
        images_dir,
        image_trees: taker.list("images.trees").into_iter().map(PathBuf::from).collect(),
        loaders,
        policy: Policy { unknown, menu_timeout, menu_default, exclude },
        admin: AdminPlan { listen, expect_within, socket: state_dir.join("admin.sock") },
        notes,
        warnings,
    }
}

fn https(taker: &mut Taker<'_>, http: &HttpPlan, notes: &mut Vec<String>) -> HttpsPlan {
    let listen = taker.listen("https.listen");
    let (certificate, key) = (taker.text("https.certificate"), taker.text("https.key"));
    let auto = taker.flag("https.auto");
    match (certificate.is_empty(), key.is_empty()) {
        (false, true) => taker.wrong("https.key", "the key of https.certificate, a PEM file"),
        (true, false) => taker.wrong("https.certificate", "the certificate of https.key, a PEM file"),
        (false, false) if auto => {
            taker.wrong("https.auto", "false where certificate and key are given: an own CA makes its own");
        }
        (true, true) if !auto && !listen.is_empty() => {
            taker.wrong("https.certificate", "a PEM file with its key, or auto = true for an own CA");
        }
        _ => {}
    }
    if http.listen.is_empty() && !listen.is_empty() {
        notes.push(
            "only HTTPS is listened on: DHCP has no URL to hand out, since no firmware trusts a certificate by \
             itself"
                .into(),
        );
    }
    let files = (!certificate.is_empty()).then(|| (PathBuf::from(certificate), PathBuf::from(key)));
    HttpsPlan { listen, files }
}

/// Two listeners on one port.
fn clashes(
    taker: &mut Taker<'_>,
    tftp: &TftpPlan,
    http: &HttpPlan,
    https: &HttpsPlan,
    admin: Option<SocketAddr>,
    mode: DhcpMode,
    dhcp: (u16, u16),
) {
    let overlap = |a: SocketAddrV4, b: SocketAddrV4| {
        a.port() != 0
            && a.port() == b.port()
            && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
    };
    let twice = |list: &[SocketAddrV4]| {
        list.iter().enumerate().any(|(i, a)| list[..i].iter().any(|b| overlap(*a, *b)))
    };
    if twice(&http.listen) {
        taker.wrong("http.listen", "each port once");
    }
    if twice(&https.listen) {
        taker.wrong("https.listen", "each port once");
    }
    if http.listen.iter().any(|http| https.listen.iter().any(|https| overlap(*http, *https))) {
        taker.wrong("https.listen", "another port than [http] listen has");
    }
    if twice(&tftp.listen) {
        taker.wrong("tftp.listen", "each port once");
    }
    if let Some(SocketAddr::V4(admin)) = admin
        && http.listen.iter().chain(&https.listen).any(|data| overlap(*data, admin))
    {
        taker.wrong("admin.listen", "another port than [http] and [https] listen have");
    }
    if mode != DhcpMode::Off {
        if dhcp.0 == dhcp.1 {
            taker.wrong("dhcp.boot_server_port", "another port than dhcp.port");
        }
        for (path, port) in [("dhcp.port", dhcp.0), ("dhcp.boot_server_port", dhcp.1)] {
            if port == CLIENT_PORT {
                taker.wrong(path, "another port than 68, which is DHCP clients'");
            }
        }
        if tftp.listen.iter().any(|tftp| [dhcp.0, dhcp.1, CLIENT_PORT].contains(&tftp.port())) {
            taker.wrong("tftp.listen", "another port than DHCP's");
        }
    }
}

fn subnets(
    lists: &Lists,
    mode: DhcpMode,
    problems: &mut Vec<Problem>,
    notes: &mut Vec<String>,
    warnings: &mut Vec<String>,
) -> Vec<SubnetPlan> {
    let mut subnets: Vec<SubnetPlan> = Vec::new();
    for (index, (origin, table)) in lists.get("dhcp.subnet").into_iter().flatten().enumerate() {
        let name = format!("dhcp.subnet[{}]", index + 1);
        let mut taker = TableTaker { name: name.clone(), origin, table, problems };
        let ipv4 = |text: &str| text.trim().parse::<Ipv4Addr>().ok();
        let network = taker.needed("network", "a network such as \"10.77.0.0/24\"", values::network);
        let range = taker.text("range", "two addresses such as \"10.77.0.100-10.77.0.200\"", values::range);
        let router = taker.text("router", "an IPv4 address", ipv4);
        let next_server = taker.text("next_server", "an IPv4 address", ipv4);
        let domain = taker.text("domain", "a domain name such as \"lab.example\"", |text| {
            values::domain(text).then(|| text.to_owned())
        });
        let dns = taker.take("dns", "a list of at most 8 IPv4 addresses", |value| match value {
            Value::List(list) if list.len() <= 8 => {
                list.iter().map(|text| ipv4(text)).collect::<Option<Vec<_>>>()
            }
            _ => None,
        });
        let lease = taker.text("lease", "a time with its unit from 1m to 365d, such as \"1h\"", |text| {
            values::time(text).filter(|t| (60..=365 * 86_400).contains(&t.as_secs()))
        });
        let options = taker.take("dhcp_option", OPTION_EXPECTED, |value| match value {
            Value::List(list) => {
                list.iter().map(|text| values::dhcp_option(text)).collect::<Option<Vec<_>>>()
            }
            _ => None,
        });
        let loader =
            taker.text("loader", "a file's name below [loaders] dirs, such as \"ipxe.efi\"", |text| {
                values::loader(text).then(|| text.to_owned())
            });
        let Some(network) = network else { continue };
        let address = values::lowest(network);
        if network.0 != address {
            taker.wrong("network", &format!("a network: the one of this address is {address}/{}", network.1));
        }
        if let Some((first, last)) = range {
            if !values::contains(network, first) || !values::contains(network, last) {
                taker.wrong("range", &format!("addresses inside {}/{}", network.0, network.1));
            } else if mode == DhcpMode::Proxy {
                notes.push(format!(
                    "{origin}: {name}.range is ignored in proxy mode: another server gives the addresses"
                ));
            } else if mode == DhcpMode::Full {
                let mut never = |addr: Ipv4Addr, what: &str| {
                    if (first..=last).contains(&addr) {
                        warnings.push(format!(
                            "{origin}: {name}.range has {addr} in it, {what}: no machine gets it"
                        ));
                    }
                };
                let ends = [first, last].into_iter().filter(|addr| values::is_end(network, *addr));
                ends.for_each(|addr| never(addr, "an end of the network"));
                let known = [router, next_server].into_iter().chain(dns.iter().flatten().copied().map(Some));
                let mut known: Vec<Ipv4Addr> = known.flatten().collect();
                known.sort_unstable();
                known.dedup();
                known.into_iter().for_each(|addr| never(addr, "which a router or server has"));
            }
        }
        if router.is_some_and(|router| !values::contains(network, router)) {
            taker.wrong("router", &format!("an address inside {}/{}", network.0, network.1));
        }
        if subnets.iter().any(|other| {
            values::contains(other.network, network.0) || values::contains(network, other.network.0)
        }) {
            taker.wrong("network", "a network that no other [[dhcp.subnet]] overlaps");
        }
        subnets.push(SubnetPlan {
            network,
            range: range.filter(|_| mode == DhcpMode::Full),
            router,
            dns: dns.unwrap_or_default(),
            lease: lease.unwrap_or(Duration::from_secs(3600)),
            next_server,
            domain,
            options: options.unwrap_or_default(),
            loader,
        });
    }
    subnets
}

fn reservations(
    lists: &Lists,
    subnets: &[SubnetPlan],
    mode: DhcpMode,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) -> Vec<ReservationPlan> {
    let mut reservations: Vec<ReservationPlan> = Vec::new();
    for (index, (origin, table)) in lists.get("dhcp.reservation").into_iter().flatten().enumerate() {
        let mut taker =
            TableTaker { name: format!("dhcp.reservation[{}]", index + 1), origin, table, problems };
        let mac = taker.text("mac", "a MAC address such as \"52:54:00:00:00:01\"", |text| text.parse().ok());
        let uuid = taker.text("uuid", "a UUID", |text| text.parse().ok());
        let bytes = "a text, or bytes such as \"hex:0001ff\", at most 255";
        let client_id = taker.text("client_id", bytes, values::bytes);
        let circuit = taker.text("circuit", bytes, values::bytes);
        let all = [
            mac.map(ReservedWho::Mac),
            uuid.map(ReservedWho::Uuid),
            client_id.map(ReservedWho::ClientId),
            circuit.map(ReservedWho::Circuit),
        ];
        let given =
            ["mac", "uuid", "client_id", "circuit"].iter().filter(|key| table.contains_key(**key)).count();
        if given != 1 {
            taker.wrong("mac", "one of mac, uuid, client_id, circuit");
        }
        let ip = taker.needed("ip", "an IPv4 address", |text| text.trim().parse::<Ipv4Addr>().ok());
        let Some(who) = all.into_iter().flatten().next() else { continue };
        let Some(ip) = ip else { continue };
        // A machine may have an address in each of several subnets.
        let subnet_of = |ip| subnets.iter().position(|subnet| values::contains(subnet.network, ip));
        let twice = |other: &ReservationPlan| other.who == who && subnet_of(other.ip) == subnet_of(ip);
        if reservations.iter().any(twice) {
            taker.wrong("mac", "a machine that has no other reservation in this subnet");
        }
        if reservations.iter().any(|other| other.ip == ip) {
            taker.wrong("ip", "an address that no other reservation has");
        }
        if matches!(&who, ReservedWho::Mac(mac) if mac.is_zero() || mac.is_group()) {
            taker.wrong("mac", "one machine's MAC address");
        }
        if matches!(&who, ReservedWho::Uuid(uuid) if !uuid.is_identifying()) {
            taker.wrong("uuid", "a UUID that only one machine has");
        }
        let subnet = subnets.iter().find(|subnet| values::contains(subnet.network, ip));
        match subnet {
            None if mode == DhcpMode::Full => taker.wrong("ip", "an address inside a [[dhcp.subnet]]"),
            None if mode == DhcpMode::Proxy => warnings.push(format!(
                "{origin}: dhcp.reservation[{}].ip {ip} is inside no [[dhcp.subnet]]: in full mode it would be refused",
                index + 1
            )),
            Some(subnet) if values::is_end(subnet.network, ip) => taker
                .wrong("ip", "an address a machine can have, neither the first nor the last of its subnet"),
            _ => {}
        }
        reservations.push(ReservationPlan { who, ip });
    }
    if mode == DhcpMode::Proxy && !reservations.is_empty() {
        warnings.push("[[dhcp.reservation]] is of use in full mode only: in proxy mode another server gives the addresses".into());
    }
    reservations
}
