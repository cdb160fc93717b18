//! The DHCP server: one machine for both modes and both ports.
//!
//! ```text
//!             67, op 1 --- proxy.rs   offers boot data beside somebody else's lease
//!   input --- 67, op 1 --- full.rs    leases, and boot data in the same reply
//!             4011     --- proxy.rs   the PXE boot server, in both modes
//!             op 2     --- proxy.rs   what other servers say is overheard
//! ```
//!
//! [`Server::handle`] takes one datagram and writes at most one reply into the caller's buffer. What a machine boots
//! is asked of a [`BootPolicy`]; who has which address is in `leases`; what firmware is like is in
//! [`super::firmware`]. What must survive a crash is handed out by [`Server::changes`], and a reply that relies on it
//! says so. In proxy mode nothing is allocated; in full mode records live in tables bounded by the pools.
//!
//! What it never does: NAK or give addresses in proxy mode, answer a REQUEST that names another server, look at
//! `secs`, send options 13, 52, 43.8, 43.9 or 43.10, or more than the client takes.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::jobs::Identity;
use crate::proto::firmware::Firmware;
use crate::wire::dhcp::{Message, MessageType, OP_REPLY, SubOptions, code, relay};
use crate::wire::{Arch, MacAddr};

mod asker;
mod full;
mod leases;
mod memory;
mod policy;
mod probe;
mod proxy;
mod reply;
mod settings;
mod verdict;

pub use leases::{LeaseRecord, LeaseTerm, POOL_LEN_MAX, PoolUse};
pub use memory::{Notice, Rival};
pub use policy::{Answer, BootFile, BootPolicy, Wish};
pub use probe::{Probe, ProbeAnswer};
pub use settings::{Mode, Network, NetworkError, Reservation, ReservedFor, Settings, SiteOption, Subnet};
pub use verdict::{
    BOOT_SERVER_PORT, CLIENT_PORT, DhcpEvent, DhcpStep, DropReason, Input, Interface, Output, SERVER_PORT,
    ServerPort, To, Verdict,
};

use asker::Asker;
use leases::{Keyed, Leases};
use memory::{Heard, Memory};
use probe::{Claims, Probes};

/// Records ended in passing by a datagram; the rest waits for [`Server::handle_timeout`].
const EXPIRED_PER_DATAGRAM_MAX: usize = 16;
/// Stored leases are believed for so long at the least, or twice their subnet's term, which can have been longer before the restart.
const STORED_LEASE_MIN: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Records ended by one timeout, so that a hall switched off at once does not hold up the loop.
const EXPIRED_PER_TIMEOUT_MAX: usize = 256;

/// Something to be stored: the newest of a key counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Who has an address.
    Lease(LeaseRecord),
    /// Which loader a machine needs.
    Loader {
        /// The machine.
        mac: MacAddr,
        /// As [`Wish::pass_over`].
        pass_over: u8,
    },
}

/// The DHCP server. Drive it with [`Server::handle`] for every datagram, and call [`Server::handle_timeout`] when
/// [`Server::poll_timeout`] says so.
#[derive(Debug)]
pub struct Server {
    settings: Settings,
    leases: Leases,
    memory: Memory,
    probes: Probes,
    claims: Claims,
    /// The identity handed to the policy, reused so that nothing is allocated per request.
    who: Identity,
}

impl Server {
    /// A server with empty tables. `seed` keys its hashes and should be random.
    pub fn new(settings: Settings, seed: u64) -> Self {
        let settings = ordered(settings);
        let keyed = Keyed(seed);
        Self {
            leases: Leases::new(&settings, keyed),
            memory: Memory::new(keyed, settings.journal),
            probes: Probes::new(settings.probe, keyed),
            claims: Claims::default(),
            settings,
            who: Identity::default(),
        }
    }

    /// What it does now.
    pub fn mode(&self) -> Mode {
        self.settings.mode
    }

    /// Changes what it is told. Leases of addresses that a subnet still lists are kept; one that the settings no longer
    /// give its machine ends with its term.
    pub fn replace_settings(&mut self, settings: Settings) {
        // Whether anybody takes the changes is not what an operator sets.
        self.settings = ordered(Settings { journal: self.settings.journal, ..settings });
        self.probes.set_wait(self.settings.probe);
        let empty = Leases::new(&Settings::default(), Keyed(0));
        self.leases = std::mem::replace(&mut self.leases, empty).under(&self.settings);
    }

    /// Takes back what [`Server::changes`] handed out before the server ended. To be called once, before the first
    /// datagram.
    pub fn restore(&mut self, now: Instant, changes: impl Iterator<Item = Change>) {
        let memory = &mut self.memory;
        let subnets = &self.settings.subnets;
        let leases = changes.filter_map(|change| match change {
            Change::Lease(record) => {
                let subnet = subnets.iter().find(|subnet| subnet.network.contains_host(record.ip));
                Some(subnet.map_or(record, |subnet| believable(record, now, subnet.lease)))
            }
            Change::Loader { mac, pass_over } => {
                memory.restore_loader(mac, pass_over);
                None
            }
        });
        self.leases.restore(now, leases);
    }

    /// True when there is something to be stored, with [`Settings::journal`].
    pub fn has_changes(&self) -> bool {
        self.change_count() > 0
    }

    /// How many changes are to be stored.
    pub fn change_count(&self) -> usize {
        self.leases.change_count() + self.memory.change_count()
    }

    /// Hands what is to be stored to `take`, in order, and says the number of the last: a reply whose
    /// [`Output::stored`] is not above it may leave once all of this is stored.
    pub fn changes(&mut self, mut take: impl FnMut(Change)) -> u64 {
        self.memory.take_changes(|mac, pass_over| take(Change::Loader { mac, pass_over }));
        let (records, number) = self.leases.take_changes();
        records.for_each(|record| take(Change::Lease(record)));
        number
    }

    /// What came after this number could not be stored. Its replies must not be sent; the machines ask again.
    pub fn forget_changes_after(&mut self, number: u64) {
        self.leases.forget_changes_after(number);
    }

    /// How full each pool is.
    pub fn pools(&self) -> impl Iterator<Item = PoolUse> {
        self.leases.pools()
    }

    /// What was noticed and an operator might want to know, once each.
    pub fn notices(&mut self) -> impl Iterator<Item = Notice> + '_ {
        self.memory.notices()
    }

    /// The memory that a message of this machine will be looked up in, for who knows before what comes next.
    pub fn memory_of(&self, mac: MacAddr) -> &(impl Sized + use<>) {
        self.memory.of(mac)
    }

    /// Answers one datagram. A reply is written to `out`, which should hold 1,472 bytes.
    pub fn handle(
        &mut self,
        now: Instant,
        input: &Input<'_>,
        policy: &mut dyn BootPolicy,
        out: &mut [u8],
    ) -> Verdict {
        self.leases.expire(now, EXPIRED_PER_DATAGRAM_MAX);
        self.decide(now, input, policy, out).unwrap_or_else(Verdict::Drop)
    }

    /// Somebody answered for an address that [`Verdict::Probe`] asked for, `by` their hardware address where that is known.
    pub fn heard_from(&mut self, now: Instant, ip: Ipv4Addr, by: Option<MacAddr>) -> ProbeAnswer {
        if !self.probes.is_asked(ip) {
            return ProbeAnswer::Unasked;
        }
        // A machine that still has the address from a life we know nothing of may have it.
        if by.is_some_and(|mac| self.leases.is_offered_to(ip, mac)) {
            self.probes.answered(ip);
            return ProbeAnswer::ItsOwn;
        }
        if !self.is_believed(now, ip, by) {
            return ProbeAnswer::Disbelieved;
        }
        self.probes.answered(ip);
        if self.leases.set_aside(ip, now) {
            self.claims.note(now, ip, by);
            self.memory.notice(Notice::InUse { ip, by });
        }
        ProbeAnswer::InUse
    }

    /// Whether an address is to be put aside because of what `by` says; an operator hears when it is not.
    fn is_believed(&mut self, now: Instant, ip: Ipv4Addr, by: Option<MacAddr>) -> bool {
        let pool = self.leases.pools().find(|pool| pool.network.contains(ip));
        let believed = self.claims.is_believed(now, by, pool);
        if !believed && self.claims.is_news(now) {
            self.memory.notice(Notice::Disbelieved { by });
        }
        believed
    }

    /// Ends offers, leases and quarantines that have run out. A large number is ended in several steps:
    /// [`Server::poll_timeout`] then lies in the past, and the caller comes back.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.leases.expire(now, EXPIRED_PER_TIMEOUT_MAX);
    }

    /// When to call [`Server::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.leases.deadline()
    }

    fn decide(
        &mut self,
        now: Instant,
        input: &Input<'_>,
        policy: &mut dyn BootPolicy,
        out: &mut [u8],
    ) -> Result<Verdict, DropReason> {
        if self.settings.mode == Mode::Off {
            return Err(DropReason::Off);
        }
        let message = Message::parse(input.bytes)?;
        if message.op() == OP_REPLY {
            return self.overhear(now, input, &message);
        }
        let mut asker = Asker::read(input, message, &self.settings.subnets)?;
        if asker.mac.is_some_and(|mac| policy.is_excluded(mac)) {
            return Err(DropReason::Excluded);
        }
        if let Some(mac) = asker.mac {
            let booting = asker.firmware.is_some_and(|firmware| firmware.ipxe().is_none());
            let heard = Heard {
                xid: asker.message.xid(),
                secs: asker.message.secs(),
                starts: booting && asker.kind == MessageType::Discover,
            };
            if !self.memory.admits(mac, now, &heard) {
                return Err(DropReason::RateLimited);
            }
        }
        let changes =
            matches!(asker.kind, MessageType::Request | MessageType::Release | MessageType::Decline);
        if changes && self.settings.mode == Mode::Full && self.leases.is_backed_up() {
            return Err(DropReason::NotStored);
        }
        self.recall_arch(&mut asker);
        match (input.port, self.settings.mode) {
            (ServerPort::BootServer, _) => self.handle_boot_server(now, &asker, policy, out),
            (ServerPort::Dhcp, Mode::Full) => self.handle_full(now, &asker, policy, out),
            (ServerPort::Dhcp, _) => self.handle_proxy(now, &asker, policy, out),
        }
    }

    /// Some firmware names its architecture in the DISCOVER only.
    fn recall_arch(&mut self, asker: &mut Asker<'_>) {
        let (Some(mac), Some(firmware)) = (asker.mac, &mut asker.firmware) else { return };
        if firmware.arch_stated {
            self.memory.note_arch(mac, firmware.arch);
        } else if let Some(arch) = self.memory.arch(mac) {
            firmware.arch = arch;
            firmware.arch_stated = true;
        }
    }

    /// Asks the policy; the file is `None` when there is nothing to boot.
    fn resolve(
        &mut self,
        now: Instant,
        asker: &Asker<'_>,
        firmware: &Firmware,
        policy: &mut dyn BootPolicy,
    ) -> Result<(Answer, Option<BootFile>), DropReason> {
        self.identify(asker);
        let pass_over = match (asker.mac, firmware.ipxe()) {
            (None, _) => 0,
            (Some(mac), Some(features))
                if !features.http && {
                    let discover = (asker.kind == MessageType::Discover).then(|| asker.message.xid());
                    !self.memory.gets_full_loader(mac, discover, now)
                } =>
            {
                return Ok((Answer::NoBoot, None));
            }
            (Some(mac), Some(_)) => {
                self.memory.note_script(mac);
                0
            }
            (Some(mac), None) if asker.kind == MessageType::Discover => {
                self.memory.loader_for_start(mac, asker.message.xid(), now)
            }
            (Some(mac), None) => self.memory.loader(mac),
        };
        let loader = asker.subnet.and_then(|index| self.settings.subnets.get(index)?.loader.as_deref());
        let wish = Wish { pass_over, loader };
        let mut file = BootFile::new();
        let answer = policy.resolve(&self.who, firmware, asker.server, &wish, &mut file);
        match answer {
            Answer::Silent => Err(DropReason::Silent),
            Answer::NoBoot => Ok((answer, None)),
            Answer::Boot | Answer::BootUnclaimed if file.is_empty() => Err(DropReason::NoBootFile),
            Answer::Boot | Answer::BootUnclaimed => Ok((answer, Some(file))),
        }
    }

    /// Fills in `who` from a request.
    fn identify(&mut self, asker: &Asker<'_>) {
        let direct = Some(*asker.input.src.ip()).filter(|ip| !ip.is_unspecified() && asker.relay().is_none());
        self.who.mac = asker.mac;
        self.who.uuid = asker.uuid;
        self.who.arch = asker.arch();
        self.who.platform = asker.arch().map(Arch::platform);
        self.who.address = asker.ciaddr().or(direct);
        self.who.relay = asker.relay();
        self.who.circuit = asker.circuit_mark;
    }
}

/// What was stored, for no longer than it can have been given for: a clock that is behind at the start would keep every address
/// that ever was for whoever had it, for as long as it is behind.
fn believable(mut record: LeaseRecord, now: Instant, lease: Duration) -> LeaseRecord {
    match &mut record.term {
        LeaseTerm::Held { until, .. } => *until = (*until).min(now + (lease * 2).max(STORED_LEASE_MIN)),
        LeaseTerm::Quarantined { until } => *until = (*until).min(now + leases::QUARANTINE),
        LeaseTerm::Forgotten => {}
    }
    record
}

/// Subnets with the longest prefixes first, as [`Asker::read`] wants them.
fn ordered(mut settings: Settings) -> Settings {
    asker::sort_narrowest_first(&mut settings.subnets);
    settings
}

/// Drives a server in each mode with arbitrary bytes, on both ports, directly and unicast, and checks what every reply
/// must keep to: for fuzz targets and the mutation tests. Panics only when an invariant of this module is broken.
pub fn fuzz_server(now: Instant, bytes: &[u8]) {
    use std::net::SocketAddrV4;

    struct Everything;
    impl BootPolicy for Everything {
        fn resolve(
            &mut self,
            who: &Identity,
            _: &Firmware,
            server: Ipv4Addr,
            _: &Wish<'_>,
            file: &mut BootFile,
        ) -> Answer {
            use std::fmt::Write;
            match who.mac.map(|mac| mac.0[5] % 8) {
                Some(0) => Answer::Silent,
                Some(1) => Answer::NoBoot,
                _ if write!(file, "http://{server}:4433/ipxe?mac={:?}", who.mac).is_err() => Answer::NoBoot,
                _ => Answer::Boot,
            }
        }
    }

    let overrides = |request: &Message<'_>, id: Ipv4Addr| {
        let body = request.option(code::RELAY_AGENT).unwrap_or_default();
        SubOptions::relay_agent(body)
            .any(|(sub, body)| sub == relay::SERVER_ID_OVERRIDE && body == id.octets())
    };
    let addr = Ipv4Addr::new(10, 77, 0, 1);
    let Some(network) = Network::new(addr, 24) else { return };
    let interface = Interface {
        index: 1,
        name: "eth0".into(),
        addr,
        network,
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
    };
    let subnet = Subnet {
        range: Some((Ipv4Addr::new(10, 77, 0, 100), Ipv4Addr::new(10, 77, 0, 103))),
        router: Some(addr),
        dns: vec![addr; 3],
        domain: Some("example.test".into()),
        ..Subnet::new(network)
    };
    for mode in [Mode::Proxy, Mode::Full] {
        let settings = Settings { mode, subnets: vec![subnet.clone()], ..Settings::default() };
        let mut server = Server::new(settings, 1);
        let mut out = [0xaa; 1472];
        for (step, (port, dst)) in [
            (ServerPort::Dhcp, Ipv4Addr::BROADCAST),
            (ServerPort::Dhcp, addr),
            (ServerPort::BootServer, addr),
            (ServerPort::Dhcp, Ipv4Addr::BROADCAST),
        ]
        .into_iter()
        .enumerate()
        {
            let src = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 9), 68);
            let input = Input { interface: &interface, port, src, src_mac: None, dst, local: addr, bytes };
            let now = now + Duration::from_secs(step as u64 * 6);
            server.handle_timeout(now);
            if let Verdict::Reply(output, event) = server.handle(now, &input, &mut Everything, &mut out) {
                let request = Message::parse(bytes).expect("only what parses is answered");
                let reply = Message::parse(&out[..output.len]).expect("what is sent parses");
                assert!((300..=1472).contains(&output.len));
                assert_eq!(reply.op(), OP_REPLY);
                assert_eq!(reply.xid(), request.xid());
                assert_eq!(reply.chaddr(), request.chaddr());
                assert_eq!(reply.giaddr(), request.giaddr());
                assert!(reply.server_id().is_some_and(|id| id == addr || overrides(&request, id)));
                assert!(
                    mode == Mode::Full || reply.yiaddr().is_unspecified() && event.what != DhcpStep::Naked
                );
                assert_eq!(reply.option(code::RELAY_AGENT), request.option(code::RELAY_AGENT));
                assert_eq!(reply.file(), event.file.as_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests;
