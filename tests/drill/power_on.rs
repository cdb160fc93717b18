//! Ten thousand machines switched on at the same moment, in virtual time: real firmware's timers on one side, the real
//! DHCP server behind queues like the engine's on the other
//! side. Nobody's firmware may give up.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use bootstorm::client::{self, Command, Config, Kind, Machine, Outcome, Patience};
use bootstorm::jobs::Identity;
use bootstorm::proto::dhcp::{
    Answer, BootFile, BootPolicy, Input, Interface, Mode, Network, Output, Server, ServerPort, Settings,
    Subnet, Verdict, Wish,
};
use bootstorm::proto::firmware::{Firmware, FirmwareKind};
use bootstorm::wire::dhcp::{Message, MessageType};
use bootstorm::wire::{MacAddr, Uuid};

use super::Random;

const MACHINES: u32 = 10_000;
const US: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// One way through the switch.
const WIRE: Duration = Duration::from_micros(200);
/// As the engine's turns are.
const REST_PER_TURN: usize = 1024;
const DISCOVERS_PER_TURN: usize = 128;
/// As the engine's rings are; DISCOVERs have one of their own.
const REST_ROOM: usize = 8192;
const DISCOVER_ROOM: usize = 16_384;

struct Loaders;

impl BootPolicy for Loaders {
    fn resolve(
        &mut self,
        _: &Identity,
        firmware: &Firmware,
        server: Ipv4Addr,
        _: &Wish<'_>,
        file: &mut BootFile,
    ) -> Answer {
        let written = match firmware.kind {
            FirmwareKind::Pxe => file.write_str("snponly.efi"),
            FirmwareKind::HttpBoot => write!(file, "http://{server}:4433/loaders/snponly.efi"),
            FirmwareKind::Ipxe(_) => write!(file, "http://{server}:4433/ipxe"),
        };
        written.expect("short names fit");
        Answer::Boot
    }
}

/// How well the server is off.
#[derive(Clone, Copy, Debug)]
struct Means {
    /// For one message.
    service: Duration,
    /// For one batch of leases.
    disk: Duration,
    discover_room: usize,
    /// One frame in so many is lost; 0: none.
    loses_one_in: usize,
}

enum Event {
    On(u32),
    Timer(u32),
    ToServer(u32, Vec<u8>),
    ToMachine(u32, Vec<u8>),
    Turn,
    Stored(u64),
}

/// What waits for its time: by time, then in the order it was put there.
struct Agenda {
    now: Instant,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    events: HashMap<u64, Event>,
    next: u64,
}

impl Agenda {
    fn put(&mut self, at: Instant, event: Event) {
        self.queue.push(Reverse((at.max(self.now), self.next)));
        self.events.insert(self.next, event);
        self.next += 1;
    }

    fn take(&mut self) -> Option<Event> {
        let Reverse((at, number)) = self.queue.pop()?;
        self.now = at;
        self.events.remove(&number)
    }
}

/// The server as the engine drives it.
struct Host {
    server: Server,
    interface: Interface,
    means: Means,
    rest: VecDeque<(u32, Vec<u8>)>,
    discovers: VecDeque<(u32, Vec<u8>)>,
    dropped: u64,
    awake: bool,
    /// Replies that wait for their leases: of the batch under way, and of the next.
    under_way: Option<Vec<(u32, Vec<u8>)>>,
    gathering: Vec<(u32, Vec<u8>)>,
    stored: u64,
}

impl Host {
    fn arrives(&mut self, from: u32, bytes: Vec<u8>) {
        let discover = Message::parse(&bytes).is_ok_and(|m| m.message_type() == Some(MessageType::Discover));
        let (queue, room) = match discover {
            true => (&mut self.discovers, self.means.discover_room),
            false => (&mut self.rest, REST_ROOM),
        };
        match queue.len() < room {
            true => queue.push_back((from, bytes)),
            false => self.dropped += 1,
        }
    }

    /// Exchanges under way first, then so many that begin one. Says when it is done.
    fn turn(&mut self, now: Instant, mut send: impl FnMut(Instant, u32, Vec<u8>)) -> Instant {
        let mut at = now;
        let mut out = [0; 1472];
        let rest: Vec<_> = self.rest.drain(..self.rest.len().min(REST_PER_TURN)).collect();
        let discovers: Vec<_> =
            self.discovers.drain(..self.discovers.len().min(DISCOVERS_PER_TURN)).collect();
        for (from, bytes) in rest.into_iter().chain(discovers) {
            let input = Input {
                interface: &self.interface,
                port: ServerPort::Dhcp,
                src: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
                src_mac: None,
                dst: Ipv4Addr::BROADCAST,
                local: US,
                bytes: &bytes,
            };
            let verdict = self.server.handle(at, &input, &mut Loaders, &mut out);
            at += self.means.service;
            if let Verdict::Reply(Output { len, stored, .. }, _) = verdict {
                let reply = (from, out[..len].to_vec());
                if stored > self.stored {
                    self.gathering.push(reply);
                } else {
                    send(at, reply.0, reply.1);
                }
            }
        }
        at
    }

    /// Begins to store what changed, if the disk is free: the number of the batch.
    fn store(&mut self) -> Option<u64> {
        if self.under_way.is_some() || !self.server.has_changes() {
            return None;
        }
        let number = self.server.changes(|_| {});
        self.under_way = Some(std::mem::take(&mut self.gathering));
        Some(number)
    }
}

fn machine(number: u32) -> Machine {
    let [.., a, b] = number.to_be_bytes();
    let mut uuid = [0x11; 16];
    uuid[14..].copy_from_slice(&[a, b]);
    Machine::new(Config {
        kind: Kind::ALL[number as usize % 4],
        mac: MacAddr([0x52, 0x54, 0, 0x77, a, b]),
        uuid: Uuid(uuid),
        serial: String::new(),
        patience: Patience::firmware(),
        seed: u64::from(number) + 1,
    })
}

/// Everybody on at once; how long the last one waited for its address, and how many frames found no room.
fn power_on(means: Means) -> (Duration, u64) {
    let start = Instant::now();
    let network = Network::new(US, 16).expect("a good prefix");
    let subnet = Subnet {
        range: Some((Ipv4Addr::new(10, 77, 1, 0), Ipv4Addr::new(10, 77, 60, 255))),
        ..Subnet::new(network)
    };
    let settings = Settings { mode: Mode::Full, subnets: vec![subnet], journal: true, ..Settings::default() };
    let mut host = Host {
        server: Server::new(settings, 7),
        interface: Interface {
            index: 2,
            name: "eth0".into(),
            addr: US,
            network,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
        },
        means,
        rest: VecDeque::new(),
        discovers: VecDeque::new(),
        dropped: 0,
        awake: false,
        under_way: None,
        gathering: Vec::new(),
        stored: 0,
    };
    let mut agenda = Agenda { now: start, queue: BinaryHeap::new(), events: HashMap::new(), next: 0 };
    let mut random = Random(3);
    let mut lost = || means.loses_one_in > 0 && random.below(means.loses_one_in) == 0;
    let mut machines: Vec<Option<Machine>> = (0..MACHINES).map(|number| Some(machine(number))).collect();
    let mut owners: HashMap<Ipv4Addr, u32> = HashMap::new();
    let mut last = start;
    (0..MACHINES).for_each(|number| agenda.put(start, Event::On(number)));
    while let Some(event) = agenda.take() {
        let now = agenda.now;
        let touched = match event {
            Event::On(number) => {
                machines[number as usize].as_mut().expect("it is there").start(now);
                Some(number)
            }
            Event::Timer(number) => {
                let Some(machine) = &mut machines[number as usize] else { continue };
                machine.handle_timeout(now);
                Some(number)
            }
            Event::ToMachine(number, bytes) => {
                let Some(machine) = &mut machines[number as usize] else { continue };
                machine.handle(now, client::Input::Dhcp { from: SocketAddrV4::new(US, 67), bytes: &bytes });
                Some(number)
            }
            Event::ToServer(number, bytes) => {
                host.arrives(number, bytes);
                if !std::mem::replace(&mut host.awake, true) {
                    agenda.put(now, Event::Turn);
                }
                None
            }
            Event::Turn => {
                if host.server.poll_timeout().is_some_and(|at| at <= now) {
                    host.server.handle_timeout(now);
                }
                let mut sent = Vec::new();
                let end = host.turn(now, |at, to, bytes| sent.push((at, to, bytes)));
                for (at, to, bytes) in sent {
                    if !lost() {
                        agenda.put(at + WIRE, Event::ToMachine(to, bytes));
                    }
                }
                if let Some(number) = host.store() {
                    agenda.put(end + means.disk, Event::Stored(number));
                }
                host.awake = !(host.rest.is_empty() && host.discovers.is_empty());
                if host.awake {
                    agenda.put(end, Event::Turn);
                }
                None
            }
            Event::Stored(number) => {
                host.stored = number;
                let mut free = host.under_way.take().unwrap_or_default();
                if !host.server.has_changes() {
                    free.append(&mut host.gathering);
                }
                for (to, bytes) in free {
                    if !lost() {
                        agenda.put(now + WIRE, Event::ToMachine(to, bytes));
                    }
                }
                if let Some(number) = host.store() {
                    agenda.put(now + means.disk, Event::Stored(number));
                }
                None
            }
        };
        let Some(number) = touched else { continue };
        let Some(machine) = &mut machines[number as usize] else { continue };
        let mut done = false;
        while let Some(command) = machine.poll_command() {
            match command {
                Command::Dhcp { bytes, .. } => {
                    if !lost() {
                        agenda.put(now + WIRE, Event::ToServer(number, bytes));
                    }
                }
                Command::UseAddress(address) => {
                    assert_eq!(owners.insert(address, number), None, "{address} is given twice: {means:?}");
                    (done, last) = (true, now);
                }
                Command::Done(Outcome::Failed(why)) => {
                    let kind = Kind::ALL[number as usize % 4].word();
                    panic!("machine {number} ({kind}) gave up after {:?}: {why}; {means:?}", now - start);
                }
                Command::Done(_) | Command::Stage(_) | Command::Tftp { .. } | Command::Http { .. } => {}
            }
        }
        match machine.poll_timeout() {
            _ if done => machines[number as usize] = None,
            Some(at) => agenda.put(at, Event::Timer(number)),
            None => panic!("machine {number} waits for nothing"),
        }
    }
    assert_eq!(owners.len(), MACHINES as usize, "{means:?}");
    (last - start, host.dropped)
}

#[test]
fn ten_thousand_machines_switched_on_at_once_all_have_their_address_before_their_firmware_gives_up() {
    let well = Means {
        service: Duration::from_micros(2),
        disk: Duration::from_millis(2),
        discover_room: DISCOVER_ROOM,
        loses_one_in: 0,
    };
    // UEFI waits the whole of its first interval for more offers, and then all of them request in one moment, which no
    // wire is fast enough for and no room large enough: who is not heard asks again.
    let patience = Duration::from_secs(60);
    let (last, _) = power_on(well);
    assert!(last < patience, "{last:?}");
}
