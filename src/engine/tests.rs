//! The running engine over loopback: real sockets, both drivers, bytes compared.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;
use crate::engine::sightings::Sighting;
use crate::files::library::{Library, Settings};
use crate::jobs::admission;
use crate::jobs::evidence::Evidence;
use crate::jobs::script::Policy;
use crate::keeper::{Keeper, Running};
use crate::proto::tftp::Limits;
use crate::store::SharedStore;
use crate::wire::tftp::{self, Mode, Options, Packet};

mod held_up;
mod http_cases;
mod https;
mod native;
mod tftp_cases;

/// A running server with one image folder, removed at the end.
struct Lab {
    engine: Option<Engine>,
    dir: PathBuf,
    content: Vec<u8>,
    evidence: crossbeam_channel::Receiver<Evidence>,
    keeper: Running,
    library: Arc<Library>,
    store: SharedStore,
    shared: Arc<Shared>,
}

fn content(len: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// What files leave by.
#[derive(Clone, Copy, Debug)]
struct Way(Driver, ZeroCopy);

impl From<Driver> for Way {
    fn from(driver: Driver) -> Self {
        Self(driver, ZeroCopy::Auto)
    }
}

/// Without a copy, and what loopback makes of it does not matter.
const RING: Way = Way(Driver::Uring, ZeroCopy::Always);
const CALLS: Way = Way(Driver::Mio, ZeroCopy::Always);

impl Lab {
    fn start(way: impl Into<Way>, len: usize) -> Self {
        Self::start_with(way, len, |_| {})
    }

    /// The same, with more files: `fill` is given the images folder.
    fn start_with(way: impl Into<Way>, len: usize, fill: impl FnOnce(&std::path::Path)) -> Self {
        Self::start_limited(way, len, admission::Limits::default(), fill)
    }

    /// The same, where boots wait for each other.
    fn start_limited(
        way: impl Into<Way>,
        len: usize,
        limits: admission::Limits,
        fill: impl FnOnce(&std::path::Path),
    ) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("bootstorm-engine-{}-{number}", std::process::id()));
        fs::create_dir_all(dir.join("images/big")).unwrap();
        let content = content(len);
        fs::write(dir.join("images/big/payload.bin"), &content).unwrap();
        fs::write(dir.join("images/big/small.txt"), "line one\nline two\n").unwrap();
        fill(&dir.join("images"));
        let library = Library::open(Settings {
            images_dir: dir.join("images"),
            trees: Vec::new(),
            loader_dirs: Vec::new(),
            bios: Vec::new(),
            uefi_x64: Vec::new(),
            uefi_ia32: Vec::new(),
            uefi_arm64: Vec::new(),
            wimboot: Vec::new(),
        })
        .unwrap();
        let (sender, evidence) = crossbeam_channel::bounded(1024);
        let library = Arc::new(library);
        let images = Arc::clone(&library);
        let store = SharedStore::default();
        let keeper = Keeper::start(
            Box::new(store.clone()),
            Box::new(move || images.snapshot()),
            [7; 32],
            Box::new(|_| {}),
        )
        .unwrap();
        let shared = Shared::new(
            Arc::clone(&library),
            keeper.keeper().clone(),
            Policy::default(),
            sender,
            Duration::from_secs(2),
        );
        shared.limit_boots(limits, Vec::new());
        let shared = Arc::new(shared);
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let Way(driver, zero_copy) = way.into();
        let settings = EngineSettings {
            driver,
            zero_copy,
            cores: 2,
            interfaces: Vec::new(),
            dhcp: None,
            dhcp_ports: (67, 4011),
            dhcp_frames: Frames::Auto,
            journal: None,
            tftp: vec![any],
            tftp_limits: Limits::default(),
            single_port: false,
            tftp_frames: Frames::Auto,
            http: vec![any],
            congestion: "reno".to_owned(),
            settle: false,
            https: Some((vec![any], https::certificates())),
        };
        let engine = Engine::start(&settings, Arc::clone(&shared)).unwrap();
        Self { engine: Some(engine), dir, content, evidence, keeper, library, store, shared }
    }

    fn http(&self) -> TcpStream {
        let engine = self.engine.as_ref().unwrap();
        let stream = TcpStream::connect(SocketAddr::V4(engine.bound.http[0])).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    fn metric(&self, name: &str) -> u64 {
        let text = Engine::metrics(&self.engine.as_ref().unwrap().cells());
        let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no metric {name}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.stop();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Reads one response: head and body.
fn response(stream: &mut impl Read) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "ended inside the head: {}", head.escape_ascii());
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).expect("always a length");
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    (head, body)
}

fn get(stream: &mut (impl Read + Write), path: &str, extra: &str) -> (String, Vec<u8>) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n{extra}\r\n").unwrap();
    response(stream)
}

fn whole_file_ranges_and_keep_alive(way: impl Into<Way>) {
    let lab = Lab::start(way, 20_000_000);
    let mut stream = lab.http();
    let (head, body) = get(&mut stream, "/images/big/payload.bin", "");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(body == lab.content, "the file arrives as it is");
    for (first, last) in [(0, 0), (5, 70_000), (19_000_000, 19_999_999), (1 << 20, (3 << 20) + 17)] {
        let range = format!("Range: bytes={first}-{last}\r\n");
        let (head, body) = get(&mut stream, "/images/big/payload.bin", &range);
        assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
        assert!(body == lab.content[first..=last], "bytes {first} to {last}");
    }
    let (head, body) = get(&mut stream, "/images/big/payload.bin", "Range: bytes=0-9,100-70000\r\n");
    assert!(head.contains("multipart/byteranges"), "{head}");
    let find = |part: &[u8]| body.windows(part.len()).any(|w| w == part);
    assert!(find(&lab.content[..10]) && find(&lab.content[100..=70_000]));
    let (_, body) = get(&mut stream, "/images/big/small.txt", "");
    assert_eq!(body, b"line one\nline two\n");
}

#[test]
fn a_file_arrives_whole_and_by_ranges_over_one_connection_without_the_ring() {
    whole_file_ranges_and_keep_alive(Driver::Mio);
}

#[test]
fn a_file_arrives_whole_and_by_ranges_over_one_connection_with_the_ring() {
    whole_file_ranges_and_keep_alive(Driver::Uring);
}

/// So many clients that their answers leave together. The first ones ask for far more than their sockets take before they
/// read anything.
fn each_client_gets_its_own_answers_in_order(driver: Driver) {
    let lab = Lab::start(driver, 1000);
    let mac = |client: usize, number: usize| {
        format!("02:00:00:{client:02x}:{:02x}:{:02x}", number >> 8, number & 255)
    };
    let ask = |client, number, extra: &str| {
        format!("GET /ipxe?mac={}&platform=efi HTTP/1.1\r\nHost: x\r\n{extra}\r\n", mac(client, number))
    };
    let read = |stream: &mut BufReader<TcpStream>, client, number| {
        let (head, body) = response(stream);
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let line = format!("\nitem --gap Machine {}\n", mac(client, number));
        assert!(String::from_utf8(body).unwrap().contains(&line), "client {client}, request {number}");
    };
    const CLIENTS: usize = 40;
    const ROUNDS: usize = 20;
    const GREEDY: usize = 5;
    // Six megabytes of answers; a socket buffers four by default.
    const MANY: usize = 4_000;
    let mut streams: Vec<_> = (0..CLIENTS).map(|_| BufReader::new(lab.http())).collect();
    let (greedy, others) = streams.split_at_mut(GREEDY);
    std::thread::scope(|scope| {
        for (client, stream) in greedy.iter().enumerate() {
            let mut stream = stream.get_ref().try_clone().unwrap();
            scope.spawn(move || {
                let all: String = (0..MANY).map(|number| ask(client, number, "")).collect();
                stream.write_all(all.as_bytes()).unwrap();
            });
        }
        for round in 0..ROUNDS {
            let last = if round + 1 == ROUNDS { "Connection: close\r\n" } else { "" };
            for (client, stream) in (GREEDY..).zip(others.iter_mut()) {
                stream.get_mut().write_all(ask(client, round, last).as_bytes()).unwrap();
            }
            for (client, stream) in (GREEDY..).zip(others.iter_mut()) {
                read(stream, client, round);
            }
        }
        for number in 0..MANY {
            for (client, stream) in greedy.iter_mut().enumerate() {
                read(stream, client, number);
            }
        }
    });
    for stream in others {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the last answer is the end");
    }
    let asked = GREEDY * MANY + (CLIENTS - GREEDY) * ROUNDS;
    assert_eq!(lab.metric("bootstorm_http_requests_total"), asked as u64);
}

#[test]
fn answers_that_leave_together_reach_who_asked_without_the_ring() {
    each_client_gets_its_own_answers_in_order(Driver::Mio);
}

#[test]
fn answers_that_leave_together_reach_who_asked_with_the_ring() {
    each_client_gets_its_own_answers_in_order(Driver::Uring);
}

#[test]
fn a_file_arrives_whole_and_by_ranges_over_one_connection_by_zero_copy_calls() {
    whole_file_ranges_and_keep_alive(CALLS);
}

#[test]
fn the_end_of_the_last_file_leaves_once_its_boot_is_recorded_by_zero_copy_calls() {
    held_until_recorded(CALLS);
}

#[test]
fn zero_copy_calls_give_way_to_splice_where_the_device_copies() {
    let lab = Lab::start(Driver::Mio, 20_000_000);
    for _ in 0..6 {
        let (_, body) = get(&mut lab.http(), "/images/big/payload.bin", "");
        assert!(body == lab.content);
    }
    let mapped = lab.metric("bootstorm_http_bytes_total{sender=\"msg_zerocopy\"}");
    let spliced = lab.metric("bootstorm_http_bytes_total{sender=\"splice\"}");
    assert!(mapped > 0 && spliced > 20_000_000, "{mapped} and {spliced}");
    assert_eq!(lab.metric("bootstorm_http_aborted_total"), 0);
}

#[test]
fn who_vanishes_under_zero_copy_calls_is_noticed() {
    let lab = Lab::start(CALLS, 60_000_000);
    for _ in 0..4 {
        let mut stream = lab.http();
        write!(stream, "GET /images/big/payload.bin HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut some = vec![0; 1_000_000];
        stream.read_exact(&mut some).unwrap();
    }
    wait_for(&lab, "bootstorm_http_aborted_total", 4);
    wait_until_gone(&lab);
}

/// Waits until no connection is open.
fn wait_until_gone(lab: &Lab) {
    let start = std::time::Instant::now();
    while lab.metric("bootstorm_http_connections_open") > 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "a connection stays");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_ring_gives_way_to_splice_where_the_device_copies() {
    let lab = Lab::start(Driver::Uring, 8_000_000);
    for _ in 0..4 {
        let mut stream = lab.http();
        get(&mut stream, "/images/big/payload.bin", "");
    }
    assert!(lab.metric("bootstorm_http_bytes_total{sender=\"send_zc\"}") > 0, "the ring was tried");
    assert!(
        lab.metric("bootstorm_http_bytes_total{sender=\"splice\"}") > 0,
        "loopback copies, so splice took over"
    );
}

#[test]
fn many_slow_readers_all_get_the_file() {
    let lab = Lab::start(Driver::Mio, 3_000_000);
    let mut streams: Vec<TcpStream> = (0..100).map(|_| lab.http()).collect();
    for stream in &mut streams {
        write!(stream, "GET /images/big/payload.bin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
    }
    for stream in &mut streams {
        let (_, body) = response(stream);
        assert!(body == lab.content);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the server closes as it was asked to");
    }
}

#[test]
fn bad_requests_are_answered_and_the_server_lives() {
    let lab = Lab::start(Driver::Mio, 1000);
    for (request, status) in [
        ("GET /images/big/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404"),
        ("GET /images/big/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404"),
        ("GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404"),
        ("DELETE /images/big/payload.bin HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "405"),
        ("rubbish\r\n\r\n".to_owned(), "400"),
        (format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(1 << 20)), "431"),
        ("GET /s/forged/images/big/payload.bin HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "403"),
    ] {
        let mut stream = lab.http();
        // The server may close while a megabyte is still being written.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer[9..], status.as_bytes(), "{}", &request[..request.len().min(60)]);
    }
    let (head, _) = get(&mut lab.http(), "/healthz", "");
    assert!(head.starts_with("HTTP/1.1 200"));
    let (head, _) =
        get(&mut lab.http(), "/images/big/payload.bin", "Range: bytes=1-5\r\nConnection: close\r\n");
    assert!(head.starts_with("HTTP/1.1 206"));
    let of = |class: &str| lab.metric(&format!("bootstorm_http_answers_total{{class=\"{class}\"}}"));
    assert_eq!(["2xx", "3xx", "4xx", "5xx"].map(of), [2, 0, 7, 0]);
}

#[test]
fn clients_that_never_stop_sending_hold_up_nobody_else() {
    for (first, chunk) in [
        ("", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".repeat(500)),
        ("rubbish\r\n\r\n", "y".repeat(1 << 16)),
    ] {
        let lab = Lab::start(Driver::Mio, 1000);
        let pumps: Vec<_> = (0..8)
            .map(|_| {
                let mut stream = lab.http();
                let mut reader = stream.try_clone().unwrap();
                let (first, chunk) = (first.to_owned(), chunk.clone());
                let writer = std::thread::spawn(move || {
                    let _ = stream.write_all(first.as_bytes());
                    while stream.write_all(chunk.as_bytes()).is_ok() {}
                });
                let sink = reader.try_clone().unwrap();
                let drain = std::thread::spawn(move || {
                    let mut buffer = vec![0; 1 << 16];
                    while reader.read(&mut buffer).is_ok_and(|len| len > 0) {}
                });
                (writer, drain, sink)
            })
            .collect();
        // The kernel spreads connections over the cores: of so many, each core has some.
        for _ in 0..16 {
            let (head, _) = get(&mut lab.http(), "/healthz", "");
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        }
        for (writer, drain, sink) in pumps {
            let _ = sink.shutdown(std::net::Shutdown::Both);
            writer.join().unwrap();
            drain.join().unwrap();
        }
    }
}

#[test]
fn a_file_truncated_in_mid_download_ends_the_connection() {
    let lab = Lab::start(Driver::Mio, 40_000_000);
    let mut stream = lab.http();
    write!(stream, "GET /images/big/payload.bin HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut some = vec![0; 100_000];
    stream.read_exact(&mut some).unwrap();
    let file = fs::File::options().write(true).open(lab.dir.join("images/big/payload.bin")).unwrap();
    file.set_len(10_000_000).unwrap();
    let mut rest = Vec::new();
    let end = stream.read_to_end(&mut rest);
    assert!(end.is_err() || some.len() + rest.len() < 40_000_000, "a cut body must not look whole");
    let (head, _) = get(&mut lab.http(), "/healthz", "");
    assert!(head.starts_with("HTTP/1.1 200"), "and the server lives");
}

/// Downloads by TFTP as a plain client does.
fn tftp_get(lab: &Lab, name: &str, options: Options) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let server = lab.engine.as_ref().unwrap().bound.tftp[0];
    let mut packet = [0; 512];
    let len = tftp::emit_rrq(&mut packet, name.as_bytes(), Mode::Octet, &options).unwrap();
    socket.send_to(&packet[..len], server).unwrap();
    let mut buffer = vec![0; 70_000];
    let (mut body, mut expected, mut blksize, mut windowsize) = (Vec::new(), 1u64, 512, 1);
    loop {
        let (len, from) = socket.recv_from(&mut buffer).expect("an answer");
        let ack = |block: u16| {
            let mut packet = [0; 4];
            tftp::emit_ack(&mut packet, block).unwrap();
            socket.send_to(&packet, from).unwrap();
        };
        match Packet::parse(&buffer[..len]).unwrap() {
            Packet::Oack(granted) => {
                blksize = granted.blksize.map_or(512, usize::from);
                windowsize = granted.windowsize.map_or(1, u64::from);
                ack(0);
            }
            Packet::Data(block, payload) if block == expected as u16 => {
                body.extend_from_slice(payload);
                let last = payload.len() < blksize;
                if last || expected % windowsize == 0 {
                    ack(block);
                }
                if last {
                    return body;
                }
                expected += 1;
            }
            Packet::Data(..) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn tftp_delivers_every_block_size_and_window() {
    let lab = Lab::start(Driver::Mio, 3_000_000);
    for (blksize, windowsize) in [(512, 1), (1428, 1), (1428, 16), (8192, 4), (1432, 64), (65464, 1)] {
        let options = Options {
            blksize: Some(blksize),
            tsize: Some(0),
            windowsize: (windowsize > 1).then_some(windowsize),
            timeout_secs: None,
        };
        let body = tftp_get(&lab, "/images\\BIG/Payload.bin", options);
        assert!(body == lab.content, "blksize {blksize}, windowsize {windowsize}");
    }
    assert_eq!(tftp_get(&lab, "big/small.txt", Options::default()), b"line one\nline two\n");
    // The last acknowledgement is on its way when the last download is whole.
    let start = std::time::Instant::now();
    while lab.metric("bootstorm_tftp_transfers_total{outcome=\"complete\"}") < 7 {
        assert!(start.elapsed() < Duration::from_secs(10), "seven downloads, not all of them counted");
        std::thread::yield_now();
    }
}

#[test]
fn tftp_refuses_writes_and_strange_names_at_once() {
    let lab = Lab::start(Driver::Mio, 1000);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let server = lab.engine.as_ref().unwrap().bound.tftp[0];
    for (packet, code) in [
        (b"\0\x01../../etc/passwd\0octet\0".as_slice(), 1),
        (b"\0\x01..\\..\\etc\\passwd\0octet\0", 1),
        (b"\0\x01big/../../../etc/passwd\0octet\0", 1),
        (b"\0\x01/etc/passwd\0octet\0", 1),
        (b"\0\x01C:\\etc\\passwd\0octet\0", 1),
        (b"\0\x02big/payload.bin\0octet\0", 2),
        (b"\0\x01big/payload.bin\0mail\0", 4),
    ] {
        socket.send_to(packet, server).unwrap();
        let mut answer = [0; 128];
        let (len, _) = socket.recv_from(&mut answer).expect("a refusal is an answer");
        assert_eq!(answer[..4], [0, 5, 0, code], "{}", packet.escape_ascii());
        assert!(!answer[..len].windows(3).any(|w| w == b"tmp"), "no local path");
    }
}

#[test]
fn a_second_request_from_the_same_port_is_answered_as_it_was_asked() {
    let lab = Lab::start(Driver::Mio, 100_000);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let server = lab.engine.as_ref().unwrap().bound.tftp[0];
    // A BIOS ROM asks for the size, is silent, and asks for the file.
    for (options, answer) in [
        ("tsize\x000\0", "\0\x06tsize\x00100000\0"),
        ("blksize\x001456\0", "\0\x06blksize\x001456\0"),
        ("blksize\x001408\0", "\0\x06blksize\x001408\0"),
    ] {
        let request = format!("\0\x01big/payload.bin\0octet\0{options}");
        socket.send_to(request.as_bytes(), server).unwrap();
        let mut buffer = [0; 600];
        let len = socket.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..len].escape_ascii().to_string(), answer.as_bytes().escape_ascii().to_string());
    }
    assert_eq!(lab.metric("bootstorm_tftp_transfers_total{outcome=\"size-query\"}"), 2);
}

#[test]
fn requests_in_other_machines_names_take_no_place_from_real_ones() {
    use crate::sys::udp::{SendBatch, Source, UdpOptions, UdpSocket as Sender};

    let lab = Lab::start(Driver::Mio, 1000);
    let server = lab.engine.as_ref().unwrap().bound.tftp[0];
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    let socket = Sender::bind(any, &UdpOptions::default()).unwrap();
    let mut batch = SendBatch::new();
    let request = b"\0\x01big/payload.bin\0octet\0timeout\x00255\0";
    let start = std::time::Instant::now();
    let mut number = 0u32;
    // Two cores of 32,768 places each.
    while lab.metric("bootstorm_tftp_requests_total") < 90_000 {
        assert!(start.elapsed() < Duration::from_secs(60), "the flood takes too long");
        for _ in 0..100 {
            number += 1;
            let addr = Ipv4Addr::from(0x7f01_0000 + number);
            batch.push_bytes(server, Source { addr, interface: 0 }, 0, request);
            if batch.is_full(1, request.len()) {
                batch.flush(&socket, |_| {});
            }
        }
        batch.flush(&socket, |_| {});
    }
    assert!(lab.metric("bootstorm_tftp_shed_total") > 0, "every place was taken");
    // The flood may still fill the socket's queue, so the client repeats its request as clients do.
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut buffer = [0; 600];
    let answer = (0..12).find_map(|_| {
        client.send_to(b"\0\x01big/small.txt\0octet\0", server).unwrap();
        client.recv(&mut buffer).ok()
    });
    assert_eq!(answer.map(|len| &buffer[4..len]), Some(b"line one\nline two\n".as_slice()));
}

#[test]
fn texts_to_be_converted_have_a_bound_and_wait_for_no_disk() {
    let lab = Lab::start_with(Driver::Mio, 1000, |images| {
        fs::write(images.join("big/long.txt"), vec![b'x'; 1 << 20]).unwrap();
    });
    // After the scan, which looks into every file.
    crate::files::served::test_file::make_cold(&lab.dir.join("images/big/long.txt"));
    let server = lab.engine.as_ref().unwrap().bound.tftp[0];
    let mut buffer = [0; 600];
    let mut ask = |socket: &UdpSocket| {
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        // What is not in memory is answered once it is asked for again.
        let (len, from) = (0..50)
            .find_map(|_| {
                socket.send_to(b"\0\x01big/long.txt\0netascii\0tsize\x000\0", server).unwrap();
                socket.recv_from(&mut buffer).ok()
            })
            .expect("an answer");
        match buffer[..len].escape_ascii().to_string().as_str() {
            "\\x00\\x06tsize\\x001048576\\x00" => Some(from),
            "\\x00\\x05\\x00\\x00too many netascii transfers; ask for octet\\x00" => None,
            other => panic!("{other}"),
        }
    };
    let clients: Vec<_> = (0..40).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let given: Vec<_> = clients.iter().filter_map(|client| ask(client).map(|from| (client, from))).collect();
    assert!(lab.metric("bootstorm_tftp_cold_waits_total") > 0, "it was on disk only");
    // Two cores; eight mebibytes each, and one of them may double.
    assert!((7..=14).contains(&given.len()), "{} of 40", given.len());
    // Whoever gives up makes room for another.
    for (client, from) in given {
        client.send_to(b"\0\x05\0\0\0", from).unwrap();
        assert!(ask(client).is_some());
    }
}

#[test]
fn who_guesses_the_port_of_a_transfer_ends_it() {
    let lab = Lab::start(Driver::Mio, 100_000);
    let server = lab.engine.as_ref().unwrap().bound.tftp[0];
    let mut buffer = [0; 600];
    let mut heard =
        |socket: &UdpSocket| socket.recv(&mut buffer).ok().map(|len| buffer[..len.min(4)].to_vec());
    let (ack, error) = (b"\0\x04\0\0".as_slice(), b"\0\x05\0\0\0".as_slice());
    for (guesses, is_served) in [(vec![ack; 2], true), (vec![ack; 3], false), (vec![error; 9], true)] {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send_to(b"\0\x01big/payload.bin\0octet\0blksize\x00512\0", server).unwrap();
        let (_, from) = socket.recv_from(&mut [0; 600]).unwrap();
        let before = lab.metric("bootstorm_tftp_unknown_tid_total");
        for guess in &guesses {
            socket.send_to(guess, server).unwrap();
        }
        wait_for(&lab, "bootstorm_tftp_unknown_tid_total", before + guesses.len() as u64);
        socket.set_read_timeout(Some(Duration::from_millis(if is_served { 5000 } else { 200 }))).unwrap();
        socket.send_to(ack, from).unwrap();
        assert_eq!(heard(&socket), is_served.then(|| vec![0, 3, 0, 1]), "{guesses:?}");
        if is_served {
            // Once a block is acknowledged, it goes on whatever comes to other ports.
            socket.send_to(b"\0\x04\0\x01", from).unwrap();
            assert_eq!(heard(&socket), Some(vec![0, 3, 0, 2]));
            let before = lab.metric("bootstorm_tftp_unknown_tid_total");
            for _ in 0..9 {
                socket.send_to(ack, server).unwrap();
            }
            wait_for(&lab, "bootstorm_tftp_unknown_tid_total", before + 9);
            socket.send_to(b"\0\x04\0\x02", from).unwrap();
            assert_eq!(heard(&socket), Some(vec![0, 3, 0, 3]));
        }
    }
    assert_eq!(lab.metric("bootstorm_tftp_shed_total"), 1);
}

#[test]
fn the_port_a_transfer_is_served_from_cannot_be_foreseen() {
    let lab = Lab::start(Driver::Mio, 1000);
    let server = lab.engine.as_ref().unwrap().bound.tftp[0];
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let ports: Vec<_> = (512..560)
        .map(|blksize| {
            let request = format!("\0\x01big/payload.bin\0octet\0blksize\0{blksize}\0");
            socket.send_to(request.as_bytes(), server).unwrap();
            socket.recv_from(&mut [0; 600]).expect("an OACK").1.port()
        })
        .collect();
    // Eight of this core, in no order that comes again.
    let used: std::collections::BTreeSet<_> = ports.iter().collect();
    assert!((2..=8).contains(&used.len()), "{ports:?}");
    assert!((1..=8).all(|period| ports.windows(period + 1).any(|run| run[0] != run[period])), "{ports:?}");
}

#[test]
fn the_recorder_hears_what_arrived() {
    let lab = Lab::start(Driver::Mio, 500_000);
    let mut stream = lab.http();
    get(&mut stream, "/images/big/payload.bin", "");
    get(&mut stream, "/images/big/payload.bin", "Range: bytes=0-9\r\n");
    get(&mut stream, "/healthz", "");
    let words: Vec<String> = std::iter::from_fn(|| lab.evidence.recv_timeout(Duration::from_secs(2)).ok())
        .take(4)
        .map(|e| format!("{:?}", e.seen))
        .collect();
    assert!(words[0].starts_with("FileStarted") && words[1].starts_with("FileDone"), "{words:?}");
    assert!(words[1].contains("bytes: 500000, part: false"), "{words:?}");
    assert!(words[3].starts_with("FileDone") && words[3].contains("bytes: 10, part: true"), "{words:?}");
}

#[test]
fn who_has_everything_and_resets_has_had_its_file() {
    let lab = Lab::start(Driver::Mio, 300_000);
    for _ in 0..20 {
        let mut stream = lab.http();
        get(&mut stream, "/images/big/payload.bin", "");
        crate::sys::tcp::reset_on_close(std::os::fd::AsRawFd::as_raw_fd(&stream));
        drop(stream);
        let seen = || format!("{:?}", lab.evidence.recv_timeout(Duration::from_secs(5)).unwrap().seen);
        let (started, ended) = (seen(), seen());
        assert!(started.starts_with("FileStarted") && ended.starts_with("FileDone"), "{started} {ended}");
    }
}

#[test]
fn what_has_no_body_opens_no_file() {
    let lab = Lab::start(Driver::Mio, 1_000);
    let catalog = lab.library.load();
    let served = catalog.http_image("big/payload.bin").unwrap();
    let ask = |method: &str, extra: &str| {
        let mut stream = lab.http();
        let head = format!(
            "{method} /images/big/payload.bin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{extra}\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.take(200).read_to_string(&mut answer).unwrap();
        (answer[9..12].to_owned(), served.is_open())
    };
    assert_eq!(ask("HEAD", ""), ("200".into(), false));
    assert_eq!(ask("GET", &format!("If-None-Match: {}\r\n", served.etag)), ("304".into(), false));
    assert_eq!(ask("GET", "Range: bytes=5000-\r\n"), ("416".into(), false));
    assert_eq!(ask("GET", "Range: bytes=0-9\r\n"), ("206".into(), true));
}

/// Waits for a counter.
fn wait_for(lab: &Lab, metric: &str, at_least: u64) {
    let start = std::time::Instant::now();
    while lab.metric(metric) < at_least {
        assert!(start.elapsed() < Duration::from_secs(20), "{metric} is {}", lab.metric(metric));
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn tftp_reads_what_is_not_in_memory_by_threads_of_its_own() {
    let cold = content(9_000_001);
    let lab = Lab::start_with(Driver::Mio, 100_000, |images| {
        for name in ["big/cold-16.bin", "big/cold-1.bin"] {
            fs::write(images.join(name), &cold).unwrap();
            crate::files::served::test_file::make_cold(&images.join(name));
        }
    });
    for (blksize, windowsize) in [(1428, 16), (8192, 1)] {
        let name = format!("big/cold-{windowsize}.bin");
        let before = lab.metric("bootstorm_tftp_cold_waits_total");
        let options = Options { blksize: Some(blksize), windowsize: Some(windowsize), ..Options::default() };
        let body = std::thread::scope(|scope| {
            let download = scope.spawn(|| tftp_get(&lab, &name, options));
            for _ in 0..20 {
                assert!(tftp_get(&lab, "big/payload.bin", options) == lab.content);
            }
            download.join().unwrap()
        });
        assert!(body == cold, "blksize {blksize}, windowsize {windowsize}");
        assert!(lab.metric("bootstorm_tftp_cold_waits_total") > before, "its first blocks were on disk only");
    }
}

#[test]
fn downloads_wait_for_a_disk_by_themselves() {
    let cold = content(9_000_001);
    for way in [Driver::Mio.into(), RING, CALLS] {
        let lab = Lab::start_with(way, 100_000, |images| {
            for name in ["whole", "end", "parts", "tls"] {
                fs::write(images.join(format!("big/{name}.bin")), &cold).unwrap();
            }
        });
        let waits = |name: &str, what: &str, download: &dyn Fn()| {
            // After the scan, which looks into every file.
            crate::files::served::test_file::make_cold(&lab.dir.join(format!("images/big/{name}.bin")));
            let before = lab.metric("bootstorm_http_cold_waits_total");
            download();
            let after = lab.metric("bootstorm_http_cold_waits_total");
            assert!(after > before, "{what}: it was on disk only, {way:?}");
        };
        waits("whole", "a file", &|| {
            std::thread::scope(|scope| {
                let several: Vec<_> = (0..8)
                    .map(|_| scope.spawn(|| get(&mut lab.http(), "/images/big/whole.bin", "").1))
                    .collect();
                for _ in 0..20 {
                    assert!(get(&mut lab.http(), "/images/big/payload.bin", "").1 == lab.content);
                }
                for download in several {
                    assert!(download.join().unwrap() == cold);
                }
            });
        });
        // Short enough to leave with its head, which it may not wait for either; read by the time it is looked at again, perhaps.
        crate::files::served::test_file::make_cold(&lab.dir.join("images/big/end.bin"));
        let (_, body) = get(&mut lab.http(), "/images/big/end.bin", "Range: bytes=-1000\r\n");
        assert!(body == cold[cold.len() - 1000..]);
        waits("parts", "parts", &|| {
            let ranges = "Range: bytes=1000000-1999999,5000000-5999999\r\n";
            let (_, body) = get(&mut lab.http(), "/images/big/parts.bin", ranges);
            for part in [&cold[1_000_000..2_000_000], &cold[5_000_000..6_000_000]] {
                assert!(body.windows(part.len()).any(|window| window == part));
            }
        });
        waits("tls", "a file through TLS", &|| {
            assert!(get(&mut lab.https(1), "/images/big/tls.bin", "").1 == cold);
        });
    }
}

#[test]
fn who_goes_away_while_a_disk_is_waited_for_leaves_nothing_behind() {
    let cold = content(9_000_001);
    let lab = Lab::start_with(Driver::Mio, 100_000, |images| {
        fs::write(images.join("big/cold.bin"), &cold).unwrap();
    });
    crate::files::served::test_file::make_cold(&lab.dir.join("images/big/cold.bin"));
    for _ in 0..50 {
        let mut gone = lab.http();
        write!(gone, "GET /images/big/cold.bin HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    }
    assert!(get(&mut lab.http(), "/images/big/cold.bin", "").1 == cold);
    assert!(lab.metric("bootstorm_http_cold_waits_total") > 0, "it was on disk only");
    let start = std::time::Instant::now();
    while lab.metric("bootstorm_http_connections_open") > 0 {
        assert!(start.elapsed() < Duration::from_secs(20), "connections that are gone stay open");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Asks for a file with these options (`name NUL value NUL ...`) and acknowledges the OACK; what the OACK says.
fn begin(lab: &Lab, socket: &UdpSocket, options: &str) -> (String, SocketAddr) {
    let server = lab.engine.as_ref().unwrap().bound.tftp[0];
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.send_to(format!("\0\x01big/payload.bin\0octet\0{options}").as_bytes(), server).unwrap();
    let mut buffer = [0; 600];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(buffer[..2], [0, 6]);
    socket.send_to(b"\0\x04\0\0", from).unwrap();
    (buffer[2..len].escape_ascii().to_string(), from)
}

#[test]
fn a_window_of_the_largest_blocks_leaves_in_turns() {
    let lab = Lab::start(Driver::Mio, 3_000_000);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    begin(&lab, &socket, "blksize\x0065464\0windowsize\x0016\0");
    wait_for(&lab, "bootstorm_tftp_blocks_total", 16);
    // Sixteen blocks of 64 KiB, two a turn: seven times there was more to send.
    assert!(lab.metric("bootstorm_tftp_turns_total") >= 7);
}

#[test]
fn who_gets_no_fragments_is_given_smaller_blocks_the_next_time() {
    let lab = Lab::start(Driver::Mio, 100_000);
    let client = || UdpSocket::bind("127.0.0.7:0").unwrap();
    let (first, second, other) = (client(), client(), UdpSocket::bind("127.0.0.8:0").unwrap());
    assert_eq!(begin(&lab, &first, "blksize\x008192\0").0, "blksize\\x008192\\x00");
    assert_eq!(begin(&lab, &second, "blksize\x008192\0").0, "blksize\\x008192\\x00", "nothing is known yet");
    // Three sends of the first block stay without an answer.
    wait_for(&lab, "bootstorm_tftp_fragments_lost_total", 1);
    assert_eq!(begin(&lab, &client(), "blksize\x008192\0").0, "blksize\\x001468\\x00");
    assert_eq!(begin(&lab, &client(), "blksize\x00512\0").0, "blksize\\x00512\\x00");
    assert_eq!(begin(&lab, &other, "blksize\x008192\0").0, "blksize\\x008192\\x00", "another machine");
}

#[test]
fn the_recorder_hears_how_a_transfer_by_tftp_went() {
    let lab = Lab::start(Driver::Mio, 500_000);
    let options = Options { blksize: Some(1000), windowsize: Some(8), ..Options::default() };
    tftp_get(&lab, "big/payload.bin", options);
    let evidence =
        lab.evidence.recv_timeout(Duration::from_secs(5)).expect("a finished transfer is evidence");
    assert!(format!("{:?}", evidence.seen).starts_with("FileDone"), "{:?}", evidence.seen);
    let facts = evidence.transfer.expect("TFTP says how it went");
    assert_eq!((facts.blksize, facts.windowsize), (1000, 8));
    assert_eq!(facts.way, crate::jobs::evidence::Way::Segments);
    assert!(facts.rtt_us.is_some_and(|rtt| rtt > 0));
}

/// Makes a file look as if it had been left alone for a minute.
fn age(path: &Path) {
    let aged = std::time::SystemTime::now() - Duration::from_secs(60);
    fs::File::options().write(true).open(path).unwrap().set_modified(aged).unwrap();
}

/// A server with images that a job can boot, and a store that can be full.
impl Lab {
    fn with_jobs(way: impl Into<Way>, len: usize) -> Self {
        Self::with_limited_jobs(way, len, admission::Limits::default())
    }

    /// The same, where boots wait for each other.
    fn with_limited_jobs(way: impl Into<Way>, len: usize, limits: admission::Limits) -> Self {
        let lab = Self::start_limited(way, len, limits, |_| {});
        let images = lab.dir.join("images");
        fs::create_dir_all(images.join("linux")).unwrap();
        fs::write(images.join("linux/vmlinuz"), crate::files::sniff::samples::bzimage()).unwrap();
        fs::write(images.join("linux/initrd.img"), &lab.content).unwrap();
        fs::write(images.join("linux/image.toml"), "destructive = true\n").unwrap();
        fs::create_dir_all(images.join("custom")).unwrap();
        fs::write(images.join("custom/custom.ipxe"), "#!ipxe\necho hello\n").unwrap();
        fs::create_dir_all(images.join("closed/private")).unwrap();
        fs::write(images.join("closed/vmlinuz"), crate::files::sniff::samples::bzimage()).unwrap();
        let manifest = "access = \"boot\"\nanswers = [\"ks.cfg\"]\nanswers_once = [\"unattend.xml\"]\n";
        fs::write(images.join("closed/image.toml"), manifest).unwrap();
        fs::write(images.join("closed/private/ks.cfg"), "host {{hostname}} serial {{serial}} {{product}}\n")
            .unwrap();
        fs::write(images.join("closed/private/unattend.xml"), "<Key>SECRET {{mac}}</Key>").unwrap();
        for file in ["linux/vmlinuz", "linux/initrd.img", "linux/image.toml", "custom/custom.ipxe"] {
            age(&images.join(file));
        }
        for file in ["vmlinuz", "image.toml", "private/ks.cfg", "private/unattend.xml"] {
            age(&images.join("closed").join(file));
        }
        lab.library.rescan().unwrap();
        lab
    }

    fn add(&self, image: &str) -> crate::jobs::job::JobId {
        self.add_for(image, "02:00:00:00:00:01")
    }

    fn add_for(&self, image: &str, mac: &str) -> crate::jobs::job::JobId {
        use crate::jobs::job::{Action, JobSpec, Selector};
        let selector = Selector::Mac(mac.parse().unwrap());
        let spec = JobSpec { replace: true, ..JobSpec::new(Action::Image(image.into()), selector) };
        match self.keeper.keeper().order_and_wait(crate::keeper::Order::AddJobs(vec![spec]), "test") {
            Ok(crate::keeper::Done::Jobs(jobs)) => jobs[0].id,
            other => panic!("{other:?}"),
        }
    }

    fn stage(&self, id: crate::jobs::job::JobId) -> crate::jobs::job::Stage {
        self.keeper.keeper().look_and_wait(move |book, _| book.job(id).unwrap().stage).unwrap()
    }

    fn order(&self, order: crate::keeper::Order) -> crate::keeper::Done {
        self.keeper.keeper().order_and_wait(order, "test").unwrap()
    }

    /// Status of a GET.
    fn status(&self, path: &str) -> String {
        let (head, _) = get(&mut self.http(), path, "");
        head.split(' ').nth(1).unwrap().to_owned()
    }

    fn script(&self) -> String {
        self.script_of("02:00:00:00:00:01")
    }

    fn script_of(&self, mac: &str) -> String {
        let path = format!("/ipxe?mac={mac}&platform=efi&buildarch=x86_64");
        let (_, body) = get(&mut self.http(), &path, "User-Agent: iPXE/1.21\r\n");
        String::from_utf8(body).unwrap()
    }
}

/// The path of a script's URL that ends so.
fn url_path<'a>(script: &'a str, end: &str) -> &'a str {
    let at = script.find(end).unwrap_or_else(|| panic!("no {end} in\n{script}"));
    let start = script[..at].rfind("/s/").expect("a boot's own URL");
    &script[start..at + end.len()]
}

fn held_until_recorded(way: impl Into<Way>) {
    use crate::jobs::job::Stage;
    let lab = Lab::with_jobs(way, 3_000_000);
    let id = lab.add("linux");
    let (one, two) = (lab.script(), lab.script());
    let (one, two) = (url_path(&one, "initrd.img"), url_path(&two, "initrd.img"));
    assert_ne!(one, two);
    lab.store.inner().fill_up(true);
    let mut stream = lab.http();
    write!(stream, "GET {one} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let held_from = lab.content.len() - 64 * 1024;
    let mut body = vec![0; held_from];
    stream.read_exact(&mut body).unwrap();
    assert!(body == lab.content[..held_from], "everything before the last 64 KiB leaves");
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let waits = stream.read(&mut [0]).unwrap_err().kind();
    assert!(matches!(waits, std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut), "{waits}");
    assert_ne!(lab.stage(id), Stage::Running);
    // A range that touches the end waits too; one that does not, and a HEAD, do not.
    let (head, _) = get(&mut lab.http(), one, "Range: bytes=0-99\r\n");
    assert!(head.starts_with("HTTP/1.1 206"), "{head}");
    let mut tail = lab.http();
    write!(tail, "GET {one} HTTP/1.1\r\nHost: x\r\nRange: bytes=-10\r\n\r\n").unwrap();
    lab.store.inner().fill_up(false);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut rest = vec![0; 64 * 1024];
    stream.read_exact(&mut rest).unwrap();
    assert!(rest == lab.content[held_from..]);
    assert_eq!(lab.stage(id), Stage::Running);
    let (_, body) = response(&mut tail);
    assert_eq!(body, lab.content[lab.content.len() - 10..]);
    // The same boot again: all of it, at once. Another one: cut before the end.
    let (_, body) = get(&mut lab.http(), one, "");
    assert!(body == lab.content);
    let mut other = lab.http();
    write!(other, "GET {two} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut all = Vec::new();
    assert!(other.read_to_end(&mut all).is_err(), "reset");
    assert!(all.len() < lab.content.len());
    assert!(lab.script().contains("had its job"), "and the next boot is a local one");
}

#[test]
fn the_end_of_the_last_file_leaves_once_its_boot_is_recorded_without_the_ring() {
    held_until_recorded(Driver::Mio);
}

#[test]
fn the_end_of_the_last_file_leaves_once_its_boot_is_recorded_with_the_ring() {
    held_until_recorded(Driver::Uring);
}

#[test]
fn a_script_that_starts_something_leaves_once_its_boot_is_recorded() {
    use crate::jobs::job::Stage;
    let lab = Lab::with_jobs(Driver::Mio, 1_000);
    let id = lab.add("custom");
    lab.store.inner().fill_up(true);
    let script = lab.script();
    assert!(script.contains("cannot record this boot") && !script.contains("/s/"), "{script}");
    assert_ne!(lab.stage(id), Stage::Running);
    lab.store.inner().fill_up(false);
    let script = lab.script();
    assert!(script.contains("custom.ipxe"), "{script}");
    assert_eq!(lab.stage(id), Stage::Running);
    assert!(lab.script().contains("had its job"));
    // Two requests on one connection keep their order around the wait.
    lab.add("custom");
    let mut stream = lab.http();
    let path = "/ipxe?mac=02:00:00:00:00:01&platform=efi&buildarch=x86_64";
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(String::from_utf8(response(&mut stream).1).unwrap().contains("custom.ipxe"));
    assert_eq!(response(&mut stream).1, b"ok\n");
}

#[test]
fn a_boot_under_way_gets_no_end_of_an_image_that_was_changed_meanwhile() {
    use crate::jobs::job::{Action, JobSpec, Selector, Stage};
    let lab = Lab::with_jobs(Driver::Mio, 200_000);
    let manifest = lab.dir.join("images/linux/image.toml");
    let becomes = |text: &str| {
        fs::write(&manifest, text).unwrap();
        age(&manifest);
        lab.library.rescan().unwrap();
    };
    let id = lab.add("linux");
    let script = lab.script();
    let (kernel, initrd) = (url_path(&script, "/linux/vmlinuz"), url_path(&script, "initrd.img"));
    let is_cut = |path: &str| {
        let mut stream = lab.http();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        stream.read_to_end(&mut Vec::new()).is_err()
    };
    assert!(!is_cut(kernel), "there is more to come");
    // It boots nothing now, by another file, by a script of its own.
    for text in ["destructive = true\nno_such_key = 1\n", "files = [\"vmlinuz\"]\n", "kind = \"iso\"\n"] {
        becomes(text);
        for path in [kernel, initrd] {
            assert!(is_cut(path), "{path} of an image with {text:?}");
        }
        assert!(!matches!(lab.stage(id), Stage::Running), "{text:?}");
    }
    becomes("destructive = true\n");
    // A boot of a rule that was added when the image could wipe nothing.
    becomes("title = \"x\"\n");
    let rule = JobSpec { allow_rule: true, ..JobSpec::new(Action::Image("linux".into()), Selector::Any) };
    lab.order(crate::keeper::Order::AddJobs(vec![rule]));
    let of_rule = lab.script_of("02:00:00:00:00:02&uuid=4c4c4544-0042-3510-8052-b4c04f564231");
    becomes("destructive = true\n");
    assert!(is_cut(url_path(&of_rule, "initrd.img")));
    assert!(!is_cut(initrd));
    assert_eq!(lab.stage(id), Stage::Running);
    // What it boots goes on with its files, whatever becomes of them.
    becomes("no_such_key = 1\n");
    assert!(!is_cut(kernel) && !is_cut(initrd));
}

#[test]
fn a_circuit_that_dhcp_was_told_of_counts_when_the_script_is_asked_for() {
    use crate::jobs::job::{Action, JobSpec, Selector};
    use crate::jobs::rule::{Circuit, CircuitMark, Rule};
    let lab = Lab::with_jobs(Driver::Mio, 1_000);
    let circuit = Circuit(b"eth0/1/7".to_vec());
    let mark = CircuitMark::of(&circuit.0);
    let selector = Selector::Rule(Box::new(Rule { circuit: Some(circuit), ..Rule::default() }));
    let spec = JobSpec::new(Action::Image("custom".into()), selector);
    lab.order(crate::keeper::Order::AddJobs(vec![spec]));
    let see = |mac: &str, circuit| {
        let arch = crate::wire::Arch(7);
        let seen = Sighting { mac: mac.parse().unwrap(), arch, uuid: None, circuit, exchange: 0 };
        lab.shared.sightings.record(Ipv4Addr::LOCALHOST, seen);
    };
    let (here, other) = ("02:00:00:00:00:01", "02:00:00:00:00:02");
    let is_given = || lab.script_of(here).contains("job j1");
    assert!(!is_given(), "no exchange seen");
    see(here, CircuitMark::from_bits(7));
    assert!(!is_given(), "another port");
    see(other, Some(mark));
    assert!(!is_given(), "another machine");
    see(here, Some(mark));
    assert!(is_given());
}

#[test]
fn a_boot_that_is_being_recorded_has_its_script_although_the_server_stops() {
    let mut lab = Lab::with_jobs(Driver::Mio, 1_000);
    let id = lab.add("custom");
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    assert!(lab.keeper.keeper().look(move |_, _| _ = wait.recv()), "the keeper is held up");
    let mut stream = lab.http();
    let path = "/ipxe?mac=02:00:00:00:00:01&platform=efi&buildarch=x86_64";
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nUser-Agent: iPXE/1.21\r\n\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let engine = lab.engine.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| engine.stop());
        std::thread::sleep(Duration::from_millis(200));
        go_on.send(()).unwrap();
        assert!(String::from_utf8(response(&mut stream).1).unwrap().contains("custom.ipxe"));
    });
    assert_eq!(lab.stage(id), crate::jobs::job::Stage::Running);
}

#[test]
fn who_only_looks_moves_no_job() {
    use crate::jobs::job::Stage;
    let lab = Lab::with_jobs(Driver::Mio, 1_000);
    let id = lab.add("custom");
    let path = "/ipxe?mac=02:00:00:00:00:01&platform=efi&buildarch=x86_64";
    for (method, status) in [("OPTIONS", "405"), ("PUT", "405"), ("HEAD", "200")] {
        let mut stream = lab.http();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
    }
    let mac = "02:00:00:00:00:01".parse().unwrap();
    let seen = Sighting { mac, arch: crate::wire::Arch(7), uuid: None, circuit: None, exchange: 0 };
    lab.shared.sightings.record([10, 0, 0, 7].into(), seen);
    let looked = String::from_utf8(get(&mut lab.http(), path, "User-Agent: curl/8\r\n").1).unwrap();
    assert!(looked.contains("the machine is at 10.0.0.7") && !looked.contains("custom.ipxe"), "{looked}");
    assert!(matches!(lab.stage(id), Stage::Armed | Stage::Offered), "{}", lab.stage(id));
    // iPXE may come by way of a proxy.
    assert!(lab.script().contains("custom.ipxe"));
    assert_eq!(lab.stage(id), Stage::Running);
    // And anybody is believed of whom no exchange was seen.
    let id = lab.add_for("custom", "02:00:00:00:00:02");
    let path = "/ipxe?mac=02:00:00:00:00:02&platform=efi&buildarch=x86_64";
    get(&mut lab.http(), path, "User-Agent: curl/8\r\n");
    assert_eq!(lab.stage(id), Stage::Running);
}

#[test]
fn what_is_asked_for_in_advance_waits_until_the_file_before_it_has_arrived() {
    use crate::jobs::evidence::Seen;
    let lab = Lab::start(Driver::Mio, 600_000);
    let ask =
        "GET /images/big/payload.bin HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    // Taken at once into this side's buffer, which acknowledges it.
    let mut reads = lab.http();
    reads.write_all(ask.as_bytes()).unwrap();
    assert!(response(&mut reads).1 == lab.content);
    assert_eq!(response(&mut reads).1, b"ok\n");
    let done = |seen: &Seen| matches!(seen, Seen::FileDone { .. });
    let heard = |lab: &Lab| lab.evidence.recv_timeout(Duration::from_secs(10)).unwrap().seen;
    while !done(&heard(&lab)) {}
    // One that reads nothing, whose kernel has not the room for it, and that goes away: its second request proves nothing.
    let mut idle = lab.http();
    idle.write_all(ask.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    drop(idle);
    loop {
        match heard(&lab) {
            Seen::TransferFailed { bytes, .. } => break assert!(bytes < 600_000, "{bytes}"),
            seen => assert!(!done(&seen), "nobody has read it"),
        }
    }
}

#[test]
fn call_backs_move_their_own_boot() {
    use crate::jobs::job::Stage;
    let lab = Lab::with_jobs(Driver::Mio, 200_000);
    let id = lab.add("linux");
    let (one, two) = (lab.script(), lab.script());
    let (one, two) = (url_path(&one, "initrd.img"), url_path(&two, "initrd.img"));
    let call = |url: &str, rest: &str| {
        let token = url.split("/images").next().unwrap();
        let (head, _) = get(&mut lab.http(), &format!("{token}/{rest}"), "");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    };
    get(&mut lab.http(), one, "");
    assert_eq!(lab.stage(id), Stage::Running);
    call(two, "confirm");
    call(two, "failed?reason=no");
    call(one, "confirm");
    let start = std::time::Instant::now();
    while lab.stage(id) != Stage::Confirmed {
        assert!(start.elapsed() < Duration::from_secs(10), "{}", lab.stage(id));
    }
}

#[test]
fn the_last_block_by_tftp_waits_where_the_machine_at_that_address_has_a_job() {
    use crate::jobs::job::Stage;
    let lab = Lab::with_jobs(Driver::Mio, 100_000);
    let id = lab.add("linux");
    let mac = "02:00:00:00:00:01".parse().unwrap();
    lab.shared.sightings.record(
        Ipv4Addr::LOCALHOST,
        Sighting { mac, arch: crate::wire::Arch(7), uuid: None, circuit: None, exchange: 0 },
    );
    lab.store.inner().fill_up(true);
    let options = Options { blksize: Some(1428), tsize: Some(0), windowsize: Some(8), timeout_secs: None };
    std::thread::scope(|scope| {
        let download = scope.spawn(|| tftp_get(&lab, "linux/initrd.img", options));
        let start = std::time::Instant::now();
        while lab.metric("bootstorm_tftp_bytes_total") < 99_000 {
            assert!(start.elapsed() < Duration::from_secs(10), "the blocks before the last one do not come");
            std::thread::yield_now();
        }
        assert_ne!(lab.stage(id), Stage::Running);
        assert!(!download.is_finished());
        lab.store.inner().fill_up(false);
        assert!(download.join().unwrap() == lab.content);
    });
    assert_eq!(lab.stage(id), Stage::Running);
    // The job is over and the file is open to anyone: nothing waits any more.
    assert!(tftp_get(&lab, "linux/initrd.img", options) == lab.content);
}

/// The `/s/TOKEN` of a script.
fn boot_url(script: &str) -> &str {
    let start = script.find("/s/").unwrap_or_else(|| panic!("no token in\n{script}"));
    &script[start..start + 3 + crate::jobs::token::SignedToken::LEN]
}

#[test]
fn a_token_opens_its_own_boots_files_and_nothing_else() {
    use crate::keeper::Order;
    let lab = Lab::with_jobs(Driver::Mio, 1_000);
    assert_eq!(lab.status("/images/closed/vmlinuz"), "403");
    let menu = lab.script();
    let menu = boot_url(&menu);
    for (path, status) in [
        ("images/closed/vmlinuz", "200"),
        ("images/linux/initrd.img", "200"),
        // Nothing was recognised in it, so no menu shows it.
        ("images/big/small.txt", "403"),
        ("images/closed/image.toml", "404"),
    ] {
        assert_eq!(lab.status(&format!("{menu}/{path}")), status, "{path}");
    }
    let id = lab.add("closed");
    let own = lab.script();
    let own = boot_url(&own);
    assert_eq!(lab.status(&format!("{own}/images/closed/vmlinuz")), "200");
    assert_eq!(lab.status(&format!("{own}/images/linux/initrd.img")), "403");
    assert_eq!(lab.status(&format!("{own}/images/big/small.txt")), "403");
    // The boot has passed, so the job cannot be cancelled; its own boot reads on, one before it does not.
    lab.order(Order::Rearm { id, expected: None, all: false });
    assert_eq!(lab.status(&format!("{own}/images/closed/vmlinuz")), "403", "armed anew since");
    let next = lab.script();
    let next = boot_url(&next);
    lab.order(Order::Cancel { id, expected: None });
    assert_eq!(lab.status(&format!("{next}/images/closed/vmlinuz")), "403", "cancelled");
    assert_eq!(lab.metric("bootstorm_http_tokens_shut_total"), 5);
    let over = lab.add("linux");
    let stale = lab.script();
    lab.order(Order::Cancel { id: over, expected: None });
    assert_eq!(lab.status(&format!("{}/images/linux/vmlinuz", boot_url(&stale))), "200", "open to anyone");
}

#[test]
fn answer_files_go_to_the_machine_whose_exchange_was_seen_and_once_if_so_marked() {
    use crate::jobs::evidence::Seen;
    let lab = Lab::with_jobs(Driver::Mio, 1_000);
    let id = lab.add("closed");
    let path = "/ipxe?mac=02:00:00:00:00:01&platform=efi&buildarch=x86_64&serial=S-1&product=Box%20%3C1%3E";
    let script = || String::from_utf8(get(&mut lab.http(), path, "User-Agent: iPXE/1.21\r\n").1).unwrap();
    let (one, two) = (script(), script());
    let (one, two) = (boot_url(&one), boot_url(&two));
    let status = |boot: &str, name: &str| lab.status(&format!("{boot}/answers/{name}"));
    let seen = |last: u8| Sighting {
        mac: crate::wire::MacAddr([2, 0, 0, 0, 0, last]),
        arch: crate::wire::Arch(7),
        uuid: None,
        circuit: None,
        exchange: 0,
    };
    assert_eq!(status(one, "ks.cfg"), "403", "no exchange seen");
    lab.shared.sightings.record(Ipv4Addr::LOCALHOST, seen(2));
    assert_eq!(status(one, "unattend.xml"), "403", "another machine's exchange");
    lab.shared.sightings.record(Ipv4Addr::LOCALHOST, seen(1));
    assert_eq!(status(one, "nothing.cfg"), "404");
    assert_eq!(status(one, "../image.toml"), "404");
    let (head, body) = get(&mut lab.http(), &format!("{one}/answers/ks.cfg"), "");
    assert!(head.contains("Content-Type: text/plain") && head.contains("Cache-Control: no-store"), "{head}");
    assert_eq!(String::from_utf8(body).unwrap(), "host  serial S-1 Box _1_\n");
    assert_eq!(status(one, "ks.cfg"), "200", "as often as it is asked for");
    // Once: held until that is stored, and then never again.
    lab.store.inner().fill_up(true);
    let mut held = lab.http();
    write!(held, "GET {one}/answers/unattend.xml HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    held.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(held.read(&mut [0]).is_err(), "nothing leaves while it cannot be stored");
    lab.store.inner().fill_up(false);
    held.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let (head, body) = response(&mut held);
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("Content-Type: application/xml"), "{head}");
    assert_eq!(body, b"<Key>SECRET 02:00:00:00:00:01</Key>");
    assert_eq!(status(one, "unattend.xml"), "403");
    assert_eq!(status(two, "unattend.xml"), "200", "once per boot");
    let reasons: Vec<String> = lab
        .evidence
        .try_iter()
        .filter_map(|evidence| match evidence.seen {
            Seen::AnswerWithheld { reason, .. } => Some(reason),
            _ => None,
        })
        .collect();
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    assert!(reasons[0].contains("no DHCP exchange") && reasons[1].contains("another machine"), "{reasons:?}");
    assert!(reasons[2].contains("once per boot"), "{reasons:?}");
    // It is stored: whoever loads the book knows it.
    let given =
        lab.keeper.keeper().look_and_wait(move |book, _| book.job(id).unwrap().given.clone()).unwrap();
    assert!(!given.is_empty());
    lab.order(crate::keeper::Order::Cancel { id, expected: None });
    assert_eq!(status(two, "ks.cfg"), "403", "the job is over");
}

#[test]
fn a_choice_from_the_menu_gets_the_answer_files_that_are_not_once_only() {
    let lab = Lab::with_jobs(Driver::Mio, 1_000);
    let path = "/ipxe?mac=02:00:00:00:00:01&platform=efi&buildarch=x86_64&serial=S-1&product=Box";
    let menu = String::from_utf8(get(&mut lab.http(), path, "User-Agent: iPXE/1.21\r\n").1).unwrap();
    let boot = boot_url(&menu);
    let answers = format!("{boot}/answers/closed");
    assert!(menu.contains(" bootstorm.answers=http://") && menu.contains(&answers), "{menu}");
    let status = |rest: &str| lab.status(&format!("{boot}/answers/{rest}"));
    assert_eq!(status("closed/ks.cfg"), "403", "no exchange seen");
    let mac = crate::wire::MacAddr([2, 0, 0, 0, 0, 1]);
    let seen = Sighting { mac, arch: crate::wire::Arch(7), uuid: None, circuit: None, exchange: 0 };
    lab.shared.sightings.record(Ipv4Addr::LOCALHOST, seen);
    let (_, body) = get(&mut lab.http(), &format!("{answers}/ks.cfg"), "");
    assert_eq!(String::from_utf8(body).unwrap(), "host  serial S-1 Box\n");
    assert_eq!(status("closed/unattend.xml"), "403", "given once, and to jobs");
    assert_eq!(status("ks.cfg"), "403", "of which image?");
    assert_eq!(status("nothing/ks.cfg"), "404");
    assert_eq!(status("linux/ks.cfg"), "404", "that image has none");
    let id = lab.add("linux");
    let own = String::from_utf8(get(&mut lab.http(), path, "User-Agent: iPXE/1.21\r\n").1).unwrap();
    let own = boot_url(&own);
    assert_eq!(lab.status(&format!("{own}/answers/closed/ks.cfg")), "403", "another image's job");
    lab.order(crate::keeper::Order::Cancel { id, expected: None });
}

#[test]
fn a_script_that_was_rendered_to_be_read_opens_nothing_and_is_no_boot_of_the_machines() {
    use crate::jobs::script::{Context, compose_explained};
    use crate::jobs::token::BootId;
    let lab = Lab::with_jobs(Driver::Mio, 1_000);
    lab.add("closed");
    let keeper = lab.keeper.keeper();
    let context = Context {
        base_url: "http://127.0.0.1",
        boot: BootId(7),
        key: keeper.key(),
        now_unix: u32::MAX,
        policy: &Policy::default(),
        hints: Default::default(),
    };
    let mac = "02:00:00:00:00:01".parse().ok();
    let who = crate::jobs::Identity { mac, ..Default::default() };
    let shown = compose_explained(&keeper.table().view(), &**lab.shared.library.load(), &who, &context);
    assert!(shown.script.contains("/images/closed/vmlinuz"), "{}", shown.script);
    let shown = boot_url(&shown.script);
    while lab.evidence.try_recv().is_ok() {}
    for path in ["images/closed/vmlinuz", "local?strategy=first-disk", "confirm", "failed", "answers/ks.cfg"]
    {
        assert_eq!(lab.status(&format!("{shown}/{path}")), "403", "{path}");
    }
    // The next thing heard of is the machine's own question.
    lab.script();
    let heard = lab.evidence.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(format!("{:?}", heard.seen).starts_with("ScriptAsked"), "{:?}", heard.seen);
}

#[test]
fn a_local_boot_that_came_back_begins_one_further_next_time() {
    use crate::jobs::job::{Action, JobSpec, Selector};
    let lab = Lab::with_jobs(Driver::Mio, 1_000);
    let mac: crate::wire::MacAddr = "02:00:00:00:00:01".parse().unwrap();
    let spec = JobSpec::new(Action::Local, Selector::Mac(mac));
    lab.order(crate::keeper::Order::AddJobs(vec![spec]));
    let script = || {
        let path = "/ipxe?mac=02:00:00:00:00:01&platform=pcbios&buildarch=i386";
        String::from_utf8(get(&mut lab.http(), path, "User-Agent: iPXE/1.21\r\n").1).unwrap()
    };
    let first = script();
    assert!(first.contains("--drive 0x80"), "{first}");
    let url = format!("{}/local?strategy=first-disk", boot_url(&first));
    assert!(first.contains(&url), "{first}");
    assert_eq!(lab.status(&format!("{}/local?strategy=warp", boot_url(&first))), "400");
    assert_eq!(lab.status("/s/forged/local?strategy=first-disk"), "403");
    assert_eq!(lab.status(&url), "200");
    let start = std::time::Instant::now();
    // Asking for the script again would be a new boot: the table says when it is so.
    let who = crate::jobs::Identity { mac: Some(mac), ..crate::jobs::Identity::default() };
    while lab.keeper.keeper().table().view().standing(&who).is_none_or(|standing| standing.local_boot != 1) {
        assert!(start.elapsed() < Duration::from_secs(10), "the report moves nothing");
        std::thread::yield_now();
    }
    assert!(!script().contains("--drive 0x80"), "the first disk is not tried any more");
}

#[test]
fn a_pending_machine_gets_the_menu_once_approved_and_nothing_once_rejected() {
    use crate::jobs::job::{Action, JobSpec, Selector};
    use crate::jobs::machine::{Ident, MachineState};
    use crate::jobs::script::Unknown;
    use crate::keeper::Order;
    let lab = Lab::with_jobs(Driver::Mio, 1_000);
    lab.shared.policy.store(Arc::new(Policy { unknown: Unknown::Pending, ..Policy::default() }));
    let mac: crate::wire::MacAddr = "02:00:00:00:00:01".parse().unwrap();
    let waits = lab.script();
    assert!(waits.contains("waits for approval") && !waits.contains("/images/"), "{waits}");
    let start = std::time::Instant::now();
    let machine = loop {
        let found =
            lab.keeper.keeper().look_and_wait(move |book, _| book.machine_with(&Ident::Mac(mac)).cloned());
        if let Some(machine) = found.unwrap() {
            break machine;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "the machine does not come on record");
    };
    assert_eq!(machine.state(), MachineState::Pending);
    let set = |state| {
        let spec = crate::jobs::book::MachineSpec { state: Some(state), ..Default::default() };
        lab.order(Order::SetMachine { id: machine.id, expected: None, spec });
    };
    set(MachineState::Approved);
    let menu = lab.script();
    assert!(menu.contains("\nmenu bootstorm\n"), "{menu}");
    let file = format!("{}/images/closed/vmlinuz", boot_url(&menu));
    assert_eq!(lab.status(&file), "200");
    let who = crate::jobs::Identity { mac: Some(mac), ..Default::default() };
    let hints = crate::jobs::script::Hints::of(&lab.keeper.keeper().table().view(), &who).approved;
    assert!(hints);
    set(MachineState::Rejected);
    let denied = lab.script();
    assert!(!denied.contains("/s/") && !denied.contains("menu") && !denied.contains("/ipxe"), "{denied}");
    assert_eq!(lab.status(&file), "403", "its tokens are shut");
    lab.order(Order::AddJobs(vec![JobSpec::new(Action::Image("closed".into()), Selector::Mac(mac))]));
    assert_eq!(lab.script(), denied, "no job opens it again");
}

#[test]
fn an_excluded_machine_gets_nothing_whatever_job_it_has() {
    let lab = Lab::with_jobs(Driver::Mio, 1_000);
    lab.add("closed");
    let before = lab.script();
    let file = format!("{}/images/closed/vmlinuz", boot_url(&before));
    let exclude = vec!["02:00:00:*".parse().unwrap()];
    lab.shared.policy.store(Arc::new(Policy { exclude, ..Policy::default() }));
    assert_eq!(lab.status(&file), "403");
    let script = lab.script();
    assert!(!script.contains("/s/") && !script.contains("http"), "{script}");
    assert!(script.contains("booting from the local disk"), "{script}");
}

#[test]
fn a_core_that_ends_is_counted_also_when_it_panics() {
    let mut lab = Lab::start(Driver::Mio, 1);
    assert_eq!(lab.shared.cores_ended(), 0);
    let core = super::shared::CoreThread(Arc::clone(&lab.shared));
    let fault = std::thread::spawn(move || {
        let _core = core;
        panic!("a fault");
    });
    fault.join().expect_err("it panics");
    assert_eq!(lab.shared.cores_ended(), 1);
    lab.engine.take().expect("it runs").stop();
    assert_eq!(lab.shared.cores_ended(), 3, "and both of the engine");
}
