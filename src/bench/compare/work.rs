//! What is asked of the servers: single loads, and the list of them a comparison goes through.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::contender::{IMAGE, Kind, LOADER};
use crate::bench::dhcp::{DhcpLoad, Mode};
use crate::bench::http::{HttpLoad, Work as HttpWork};
use crate::bench::https::HttpsLoad;
use crate::bench::result::Point;
use crate::bench::storm::StormLoad;
use crate::bench::tftp::TftpLoad;
use crate::bench::transmit::TransmitLoad;
use crate::bench::{Way, dhcp, http, https, storm, tftp, transmit};
use crate::client::{Kind as Firmware, Patience};

/// Machines that scripts are asked for, and that DHCP serves in turn.
const MACHINES: u32 = 10_000;
/// Machines that ask for the first time: as many as this server's pool gives to those nobody registered, four fifths of it.
const NEWCOMERS: u32 = 26_000;
/// A lost exchange is lost after iPXE's first patience.
const EXCHANGE_WAIT: Duration = Duration::from_secs(1);
/// DHCP exchanges under way at once.
const EXCHANGES: u32 = 64;
/// What has not booted by then has failed.
const STORM_TIME: Duration = Duration::from_secs(120);
/// What a storm takes as a rule, what stands around every load, and what starting a server adds.
const STORM_ABOUT: Duration = Duration::from_secs(15);
const LOAD_ABOUT: Duration = Duration::from_millis(130);
const RESTART_ABOUT: Duration = Duration::from_millis(700);
const TFTP_PORT: u16 = 69;
/// The largest block that fits a frame of MTU 1500.
const FRAME_BLKSIZE_MAX: u16 = 1468;
const HTTP_PORT: u16 = 4433;
pub(super) const HTTPS_PORT: u16 = 4434;
const SCRIPT_PATH: &str = "/ipxe?mac={mac}";

/// A part of a comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Large files over HTTP.
    Http,
    /// The same, and small answers, by TLS.
    Https,
    /// Large files over HTTP with nobody receiving them: what sending alone costs.
    Transmit,
    /// Files over TFTP.
    Tftp,
    /// Addresses and proxy offers.
    Dhcp,
    /// Small answers over HTTP.
    Script,
    /// Whole boots.
    Storm,
    /// This program's TFTP and HTTP over an impaired wire.
    Network,
}

impl Work {
    /// All of them, in the order they are done.
    pub const ALL: [Self; 8] = [
        Self::Http,
        Self::Https,
        Self::Transmit,
        Self::Tftp,
        Self::Dhcp,
        Self::Script,
        Self::Storm,
        Self::Network,
    ];

    /// As on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Transmit => "transmit",
            Self::Tftp => "tftp",
            Self::Dhcp => "dhcp",
            Self::Script => "script",
            Self::Storm => "storm",
            Self::Network => "network",
        }
    }
}

/// One load on one server, for one process. It is handed to that process as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// The server.
    pub server: Ipv4Addr,
    /// The interface towards it, for simulated hosts.
    pub interface: String,
    /// Address of the first simulated host; `None`: the last ones of the interface's network.
    pub from: Option<Ipv4Addr>,
    /// Measured for this long, milliseconds.
    pub time_ms: u64,
    /// What is asked.
    pub what: What,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// A file by TFTP, again and again.
    Tftp {
        /// Block size.
        blksize: u16,
        /// Window size.
        windowsize: u16,
        /// Clients at once.
        clients: u32,
        /// This program serves it by its sockets alone; the load is the same.
        sockets: bool,
    },
    /// A file by HTTP, again and again, or ranges of it.
    Http {
        /// Bytes of a range; `None`: all of it.
        range: Option<u64>,
        /// Connections at once.
        connections: u32,
    },
    /// A file by HTTPS, again and again; or scripts, each on a new connection.
    Https {
        /// Connections at once.
        connections: u32,
        /// A script, a handshake each.
        close: bool,
    },
    /// A file by HTTP that is acknowledged and not received.
    Transmit {
        /// Connections at once.
        connections: u32,
        /// Times that each asks for it; `None`: until the time is over.
        requests: Option<u32>,
        /// How this program sends it; the load is the same.
        sender: Sender,
    },
    /// Scripts of many machines.
    Script {
        /// Connections at once.
        connections: u32,
        /// A new one for each.
        close: bool,
    },
    /// DHCP exchanges of many machines, by broadcast.
    Dhcp {
        /// What makes one.
        exchange: Exchange,
        /// Under way at once.
        clients: u32,
        /// Begun a second, whatever comes back; `None`: the next one when one has ended.
        rate: Option<u32>,
        /// Every machine asks once, and nobody has seen it before.
        first_time: bool,
    },
    /// Whole boots of all kinds of firmware, each machine once.
    Storm {
        /// Switched on at once.
        machines: u32,
        /// Waits for further DHCP offers are cut short.
        impatient: bool,
    },
}

/// How this program sends a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sender {
    /// Pages of the file through a pipe.
    Splice,
    /// The file's mapping by io_uring's SEND_ZC.
    ZeroCopy,
}

/// What makes a DHCP exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exchange {
    /// DISCOVER and OFFER.
    Discover,
    /// DISCOVER to ACK.
    Dora,
    /// A PXE client's DISCOVER and a proxy's OFFER.
    Proxy,
}

impl Load {
    /// How long it may take, setting up and ending aside.
    pub(super) fn patience(&self) -> Duration {
        match self.what {
            What::Storm { .. } => STORM_TIME,
            _ => Duration::from_millis(self.time_ms),
        }
    }

    /// Runs it in this thread.
    ///
    /// # Errors
    /// A sentence.
    pub fn run(&self) -> Result<Point, String> {
        let time = Duration::from_millis(self.time_ms);
        let at = |port| SocketAddrV4::new(self.server, port);
        let http_load = |work, connections, close| HttpLoad {
            server: at(HTTP_PORT),
            work,
            connections,
            close,
            time,
            requests_max: None,
        };
        match self.what {
            What::Tftp { blksize, windowsize, clients, sockets: _ } => tftp::run(&TftpLoad {
                server: at(TFTP_PORT),
                file: LOADER.into(),
                blksize,
                windowsize,
                tsize: false,
                clients,
                time,
                files_max: None,
                check: None,
                // Fragments are put together by the kernel, so larger blocks go through its sockets.
                way: match blksize {
                    0..=FRAME_BLKSIZE_MAX => Way::Raw { interface: self.interface.clone(), first: self.from },
                    _ => Way::Sockets,
                },
            }),
            What::Http { range, connections } => {
                let path = format!("/images/{IMAGE}");
                let work = match range {
                    Some(len) => HttpWork::Ranges { path, len, random: true },
                    None => HttpWork::File { path },
                };
                http::run(&http_load(work, connections, false))
            }
            What::Https { connections, close } => https::run(&HttpsLoad {
                server: at(HTTPS_PORT),
                path: if close { SCRIPT_PATH.into() } else { format!("/images/{IMAGE}") },
                machines: MACHINES,
                connections,
                close,
                time,
            }),
            What::Transmit { connections, requests, sender: _ } => transmit::run(&TransmitLoad {
                server: at(HTTP_PORT),
                interface: self.interface.clone(),
                path: format!("/images/{IMAGE}"),
                connections,
                time,
                requests,
            }),
            What::Script { connections, close } => {
                let work = HttpWork::Script { path: SCRIPT_PATH.into(), machines: MACHINES };
                http::run(&http_load(work, connections, close))
            }
            What::Dhcp { exchange, clients, rate, first_time } => dhcp::run(&DhcpLoad {
                interface: self.interface.clone(),
                server: None,
                mode: match exchange {
                    Exchange::Discover => Mode::Discover,
                    Exchange::Dora => Mode::Dora,
                    Exchange::Proxy => Mode::Proxy,
                },
                clients,
                machines: if first_time { NEWCOMERS } else { MACHINES },
                exchanges_max: first_time.then_some(NEWCOMERS),
                pxe: exchange == Exchange::Proxy,
                relays: 0,
                first_relay: None,
                rate,
                wait: EXCHANGE_WAIT,
                time,
            }),
            What::Storm { machines, impatient } => storm::run(&StormLoad {
                interface: self.interface.clone(),
                kinds: Firmware::ALL.into(),
                machines,
                ramp: Duration::ZERO,
                patience: if impatient { Patience::quick() } else { Patience::firmware() },
                time: STORM_TIME,
            }),
        }
        .map_err(|error| error.to_string())
    }
}

impl What {
    /// The same with another number of clients.
    pub(super) fn with_clients(&self, count: u32) -> Self {
        let mut what = self.clone();
        match &mut what {
            Self::Tftp { clients, .. } | Self::Dhcp { clients, .. } => *clients = count,
            Self::Http { connections, .. }
            | Self::Https { connections, .. }
            | Self::Transmit { connections, .. }
            | Self::Script { connections, .. } => *connections = count,
            Self::Storm { machines, .. } => *machines = count,
        }
        what
    }

    /// The same at a rate, whatever comes back; only DHCP knows one.
    pub(super) fn offered(&self, per_second: u32) -> Self {
        let mut what = self.clone();
        if let Self::Dhcp { rate, .. } = &mut what {
            *rate = Some(per_second);
        }
        what
    }

    /// How often it is done at most: a storm takes as long as it takes.
    pub(super) fn rounds_max(&self) -> u32 {
        if matches!(self, Self::Storm { .. }) { 3 } else { u32::MAX }
    }

    /// True where what a server has learned changes what it does: it begins each round knowing nothing. dnsmasq writes all
    /// it knows for every lease, so it would slow down from round to round.
    pub(super) fn begins_afresh(&self, kind: Kind) -> bool {
        match self {
            Self::Dhcp { first_time: true, .. } => true,
            Self::Dhcp { exchange: Exchange::Dora, .. } => kind == Kind::Dnsmasq,
            _ => false,
        }
    }

    /// The load that is run once before the first round and not counted: it fills caches and tables.
    pub(super) fn warm_up(&self) -> Option<Self> {
        match self {
            Self::Storm { .. } | Self::Dhcp { first_time: true, .. } => None,
            what => Some(what.clone()),
        }
    }

    /// A load of one client that shows that a server answers.
    pub(super) fn probe(&self) -> Self {
        let mut what = self.with_clients(1);
        // The first-time load would go on until all have asked.
        if let Self::Dhcp { first_time, .. } = &mut what {
            *first_time = false;
        }
        what
    }

    /// About how long one of it takes, setting up included.
    pub(super) fn about(&self, time: Duration) -> Duration {
        match self {
            Self::Storm { .. } => STORM_ABOUT,
            what if what.begins_afresh(Kind::Ours) => time + RESTART_ABOUT,
            _ => time + LOAD_ABOUT,
        }
    }

    pub(super) fn is_http(&self) -> bool {
        matches!(self, Self::Http { .. } | Self::Https { .. } | Self::Transmit { .. } | Self::Script { .. })
    }

    /// As rows name it: work, settings and clients.
    pub(super) fn describe(&self) -> (&'static str, BTreeMap<String, String>, u32) {
        let of = |pairs: &[(&str, String)]| {
            pairs.iter().map(|(key, value)| ((*key).into(), value.clone())).collect()
        };
        match self {
            Self::Tftp { blksize, windowsize, clients, sockets } => {
                let mut settings: BTreeMap<_, _> =
                    of(&[("blksize", blksize.to_string()), ("windowsize", windowsize.to_string())]);
                if *sockets {
                    settings.insert("frames".into(), "off".into());
                }
                ("tftp", settings, *clients)
            }
            Self::Http { range, connections } => {
                let request =
                    range.map_or_else(|| "whole file".into(), |len| format!("{} MiB ranges", len >> 20));
                ("http", of(&[("request", request)]), *connections)
            }
            // Named apart, because one is counted in bytes and the other in answers.
            Self::Https { connections, close: false } => {
                ("https", of(&[("request", "whole file".into())]), *connections)
            }
            Self::Https { connections, close: true } => {
                ("handshake", of(&[("connection", "new each time".into())]), *connections)
            }
            Self::Transmit { connections, sender, .. } => {
                let sender = match sender {
                    Sender::Splice => "splice",
                    Sender::ZeroCopy => "SEND_ZC",
                };
                ("transmit", of(&[("sender", sender.into())]), *connections)
            }
            Self::Script { connections, close } => {
                let kept = if *close { "new each time" } else { "kept alive" };
                ("script", of(&[("connection", kept.into())]), *connections)
            }
            Self::Dhcp { exchange, clients, first_time, .. } => {
                let word = match exchange {
                    Exchange::Discover => Mode::Discover,
                    Exchange::Dora => Mode::Dora,
                    Exchange::Proxy => Mode::Proxy,
                };
                let mut settings = of(&[("mode", word.word().into())]);
                if *first_time {
                    settings.insert("machines".into(), "never seen before".into());
                }
                ("dhcp", settings, *clients)
            }
            Self::Storm { machines, impatient } => {
                let timers = if *impatient { "waits for offers cut short" } else { "as in firmware" };
                ("storm", of(&[("timers", timers.into())]), *machines)
            }
        }
    }
}

/// One work, and who does it.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) what: What,
    pub(super) kinds: &'static [Kind],
}

/// What is done, in order.
pub(super) fn cases(works: &[Work], quick: bool) -> Vec<Case> {
    const TFTP: &[Kind] = &[Kind::Ours, Kind::Dnsmasq, Kind::TftpdHpa, Kind::Atftpd, Kind::Null];
    const BY_SOCKETS: &[Kind] = &[Kind::OursSockets, Kind::Dnsmasq, Kind::Null];
    // The responder that does nothing is no ceiling where it does more than nothing: windows and bodies.
    const WINDOWS: &[Kind] = &[Kind::Ours, Kind::Atftpd];
    const HTTP: &[Kind] = &[Kind::Ours, Kind::Nginx];
    let mut cases = Vec::new();
    let mut add = |what: What, kinds: &'static [Kind]| cases.push(Case { what, kinds });
    for work in Work::ALL.into_iter().filter(|work| works.contains(work)) {
        match work {
            Work::Http => {
                let clients: &[u32] = if quick { &[1, 16, 256] } else { &[1, 4, 16, 64, 256, 1000] };
                for connections in clients.iter().copied() {
                    add(What::Http { range: None, connections }, HTTP);
                }
                let ranges: &[(u64, u32)] = if quick { &[(16, 16)] } else { &[(16, 16), (1, 16), (1, 256)] };
                for (mib, connections) in ranges.iter().copied() {
                    add(What::Http { range: Some(mib << 20), connections }, HTTP);
                }
            }
            Work::Https => {
                let clients: &[u32] = if quick { &[16] } else { &[1, 16, 256] };
                for connections in clients.iter().copied() {
                    add(What::Https { connections, close: false }, HTTP);
                }
                add(What::Https { connections: 16, close: true }, HTTP);
            }
            Work::Transmit => {
                let senders: [(Sender, &[Kind]); 2] = [
                    (Sender::Splice, &[Kind::OursSplice, Kind::Nginx]),
                    (Sender::ZeroCopy, &[Kind::OursZeroCopy, Kind::Nginx]),
                ];
                for (sender, kinds) in senders {
                    for connections in [1, 16, 256] {
                        add(What::Transmit { connections, requests: None, sender }, kinds);
                    }
                }
            }
            Work::Tftp => {
                let lockstep: &[u32] = if quick { &[1, 64, 512] } else { &[1, 8, 64, 512] };
                for clients in lockstep.iter().copied() {
                    add(What::Tftp { blksize: 1428, windowsize: 1, clients, sockets: false }, TFTP);
                }
                // What a host with a packet filter gets.
                let by_sockets: &[u32] = if quick { &[512] } else { &[64, 512] };
                for clients in by_sockets.iter().copied() {
                    add(What::Tftp { blksize: 1428, windowsize: 1, clients, sockets: true }, BY_SOCKETS);
                }
                let windows: &[(u16, u32)] = if quick {
                    &[(16, 1), (16, 64), (64, 1)]
                } else {
                    &[(4, 1), (16, 1), (16, 16), (16, 64), (64, 1), (64, 16)]
                };
                for (windowsize, clients) in windows.iter().copied() {
                    add(What::Tftp { blksize: 1428, windowsize, clients, sockets: false }, WINDOWS);
                }
                if !quick {
                    add(What::Tftp { blksize: 512, windowsize: 1, clients: 64, sockets: false }, TFTP);
                    add(
                        What::Tftp { blksize: 8192, windowsize: 1, clients: 16, sockets: false },
                        &[Kind::Ours, Kind::TftpdHpa, Kind::Atftpd],
                    );
                }
            }
            Work::Script => {
                let clients: &[u32] = if quick { &[64] } else { &[1, 64, 512] };
                for close in [false, true] {
                    for connections in clients.iter().copied() {
                        add(What::Script { connections, close }, HTTP);
                    }
                }
            }
            Work::Dhcp => {
                const FULL: &[Kind] = &[Kind::Ours, Kind::Dnsmasq, Kind::Kea, Kind::Null];
                const LEASES: &[Kind] = &[Kind::Ours, Kind::Dnsmasq, Kind::Kea, Kind::KeaPersist, Kind::Null];
                const PROXY: &[Kind] = &[Kind::OursProxy, Kind::DnsmasqProxy, Kind::NullProxy];
                let exchanges =
                    [(Exchange::Discover, FULL), (Exchange::Dora, LEASES), (Exchange::Proxy, PROXY)];
                for (exchange, kinds) in exchanges {
                    add(What::Dhcp { exchange, clients: EXCHANGES, rate: None, first_time: false }, kinds);
                }
                let exchange = Exchange::Dora;
                add(What::Dhcp { exchange, clients: EXCHANGES, rate: None, first_time: true }, LEASES);
            }
            Work::Storm => {
                add(What::Storm { machines: if quick { 100 } else { 500 }, impatient: quick }, &[Kind::Ours])
            }
            Work::Network => {}
        }
    }
    cases
}

/// Who is overloaded, with what, and by how much of what it can do.
pub(super) const OVERLOADED: &[Kind] = &[Kind::Ours, Kind::Kea, Kind::Null];
pub(super) const OVERLOAD: What =
    What::Dhcp { exchange: Exchange::Dora, clients: EXCHANGES, rate: None, first_time: false };
/// The factor, and the share of its CPU that the server is left with so that the load can reach it.
pub(super) const OVERLOADS: [(u32, f64); 2] = [(3, 0.2), (10, 0.1)];

/// What goes over the impaired wire.
pub(super) fn network_loads(quick: bool) -> Vec<What> {
    let windows: &[u16] = if quick { &[1, 16, 64] } else { &[1, 4, 16, 64] };
    let clients: &[u32] = if quick { &[1] } else { &[1, 16] };
    let mut loads = Vec::new();
    for clients in clients.iter().copied() {
        loads.push(What::Http { range: None, connections: clients });
        loads.extend(windows.iter().map(|windowsize| What::Tftp {
            blksize: 1428,
            windowsize: *windowsize,
            clients,
            sockets: false,
        }));
    }
    loads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_survives_its_way_to_another_process() {
        let load = Load {
            server: Ipv4Addr::new(10, 1, 0, 1),
            interface: "to-1".into(),
            from: None,
            time_ms: 100,
            what: What::Http { range: Some(1 << 20), connections: 3 },
        };
        let sent = What::Transmit { connections: 16, requests: None, sender: Sender::ZeroCopy };
        for load in [Load { what: sent, ..load.clone() }, load] {
            let text = serde_json::to_string(&load).unwrap();
            assert_eq!(serde_json::from_str::<Load>(&text).unwrap(), load);
        }
    }

    #[test]
    fn every_case_begins_with_this_program_and_is_there_once() {
        for quick in [true, false] {
            let cases = cases(&Work::ALL, quick);
            assert!(cases.iter().all(|case| case.kinds[0].peer().is_none()));
            for (index, case) in cases.iter().enumerate() {
                assert!(cases[index + 1..].iter().all(|other| other.what != case.what), "{case:?}");
            }
        }
        assert!(Work::ALL.map(Work::word).contains(&"network"));
        assert!(cases(&Work::ALL, true).len() < cases(&Work::ALL, false).len());
        assert!(cases(&[Work::Tftp], true).iter().all(|case| matches!(case.what, What::Tftp { .. })));
    }
}
