//! Every TFTP client at hand, over every size a block can end at, by frames and by sockets, with and without loss: each
//! file has to arrive byte for byte.
//!
//! Clients of one round run side by side, so that a lost packet's time-out holds up nobody else. Without `LAB_ALL=1` each
//! client has one block size of its own and a few windows.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::time::Duration;

use labkit::{Firmware, INIT_WORD, Machine, MachineSpec, Namespace, Process, run, tool};

use crate::server::{BRIDGE, FULL, Net, SOON, Server, Site, binary};

/// Clients at once.
const SIDE_BY_SIDE: usize = 8;
/// An emulated boot on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

fn everything() -> bool {
    std::env::var_os("LAB_ALL").is_some_and(|value| value == "1")
}

/// Another byte at every offset, whatever the block size.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// Nothing; around one block; an exact multiple, which ends with an empty block; less than a window; many windows.
fn sizes(blksize: usize) -> Vec<usize> {
    let mut sizes =
        vec![0, 1, blksize - 1, blksize, blksize + 1, 5 * blksize + 7, 16 * blksize, 60 * blksize + 13];
    if everything() {
        sizes.extend([2 * blksize, 16 * blksize - 1, 64 * blksize, 64 * blksize + 1, 700 * blksize + 1]);
    }
    sizes
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Client {
    Curl,
    Atftp {
        windowsize: Option<u16>,
        /// Asks for a multicast transfer (RFC 2090), which is left unanswered, and takes what it gets.
        multicast: bool,
    },
    /// tftp-hpa's client, which asks for no options.
    Hpa,
    Busybox,
}

impl Client {
    /// It fetches a file of so many bytes.
    fn command(self, place: &Namespace, blksize: usize, len: usize, to: &Path) -> Command {
        let server = "10.77.0.1";
        match self {
            Self::Curl => {
                let mut command = place.command(tool("curl", "curl"));
                // What it has lost it would wait for for an hour. 64 blocks of 8 KiB take it a minute over a loss of 2 %.
                command.args(["-sS", "-f", "--max-time", "600", "-o"]).arg(to);
                if len == 0 {
                    // It takes a `tsize` of 0 for an error of the server's.
                    command.arg("--tftp-no-options");
                } else {
                    command.args(["--tftp-blksize", &blksize.to_string()]);
                }
                command.arg(format!("tftp://{server}/images/data/{len}.bin"));
                command
            }
            Self::Atftp { windowsize, multicast } => {
                let mut command = place.command(tool("atftp", "atftp"));
                // To say why it gave up.
                command.args(["--trace", "--option", &format!("blksize {blksize}")]);
                if let Some(windowsize) = windowsize {
                    command.args(["--option", &format!("windowsize {windowsize}")]);
                }
                if multicast {
                    command.args(["--option", "multicast "]);
                }
                command.args(["--get", "--remote-file", &format!("data/{len}.bin"), "--local-file"]).arg(to);
                command.arg(server);
                command
            }
            Self::Hpa => {
                let mut command = place.command(tool("tftp", "tftp-hpa"));
                command.args([server, "-m", "binary", "-c", "get", &format!("data/{len}.bin")]).arg(to);
                command
            }
            Self::Busybox => {
                let mut command = place.command(tool("busybox", "busybox-static"));
                command.args(["tftp", "-g", "-b", &blksize.to_string(), "-r", &format!("data/{len}.bin")]);
                command.arg("-l").arg(to).arg(server);
                command
            }
        }
    }
}

/// Who asks, and with what block size.
fn clients() -> Vec<(Client, usize)> {
    let atftp = |windowsize| Client::Atftp { windowsize, multicast: false };
    let multicast = Client::Atftp { windowsize: None, multicast: true };
    let mut clients = vec![
        (Client::Hpa, 512),
        (Client::Busybox, 1468),
        (Client::Curl, 1428),
        (multicast, 512),
        (atftp(Some(4)), 1428),
        (atftp(Some(64)), 1428),
    ];
    if everything() {
        for blksize in [8, 512, 1024, 1432, 1468, 8192] {
            clients.extend([(Client::Curl, blksize), (atftp(None), blksize), (atftp(Some(16)), blksize)]);
        }
        clients.extend([(Client::Busybox, 512), (Client::Busybox, 1024), (Client::Busybox, 8192)]);
    }
    clients
}

/// The server's network and a machine behind a wire that loses packets.
struct Place {
    net: Net,
    client: Namespace,
    _middle: Namespace,
    _wire: Process,
}

impl Place {
    fn new(folder: &Path, loss: &str) -> Self {
        let net = Net::flat();
        let (middle, client) = (Namespace::new(), Namespace::new());
        net.server.wire("plug0", &middle, "a0");
        middle.wire("b0", &client, "eth0");
        net.server.ip(&format!("link set plug0 master {BRIDGE}"));
        // A frame on the wire is one packet: loss must not take a whole window.
        net.server.ip("link set plug0 gso_max_segs 1");
        client.ip("addr add 10.77.0.66/24 dev eth0");
        // Blocks that lost a fragment lie in wait for it; enough of them, and for half a minute no other block is put together.
        for end in [&net.server, &client] {
            run(end.command("sysctl").args(["-qw", "net.ipv4.ipfrag_time=2"]));
        }
        let mut command = middle.command(binary());
        command.args(["bench", "wire", "a0", "b0", "--rtt", "1ms", "--loss", loss, "--seed", "7"]);
        let mut wire = Process::spawn("wire", &mut command, &folder.join("wire.log"));
        wire.wait_for("the wire is up", SOON);
        Self { net, client, _middle: middle, _wire: wire }
    }
}

fn sent(server: &Server<'_>, net: &Net, way: &str) -> u64 {
    server.metric(net, &format!("bootstorm_tftp_sent_total{{way=\"{way}\"}}"))
}

/// Every client fetches every size over a wire with this loss; what went wrong.
fn fetch_everything(config: &str, loss: &str) {
    let site = Site::new(BRIDGE, "auto", &format!("{config}{FULL}"));
    let folder = site.dir.join("images/data");
    fs::create_dir_all(&folder).expect("a folder");
    // curl has its server wait five seconds before it sends a block again (RFC 2349).
    let would_take_minutes =
        |client, blksize, len| loss != "0%" && client == Client::Curl && len > 64 * blksize + 1;
    let wanted: Vec<(Client, usize, usize)> = clients()
        .into_iter()
        .flat_map(|(client, blksize)| sizes(blksize).into_iter().map(move |len| (client, blksize, len)))
        .filter(|(client, blksize, len)| !would_take_minutes(*client, *blksize, *len))
        .collect();
    for len in wanted.iter().map(|(_, _, len)| *len).collect::<BTreeSet<_>>() {
        fs::write(folder.join(format!("{len}.bin")), pattern(len)).expect("the file");
    }
    let place = Place::new(&site.dir.0, loss);
    let server = site.serve(&place.net);
    // The largest first: they take longest.
    let mut waiting = wanted.clone();
    waiting.sort_by_key(|(_, _, len)| *len);
    let (waiting, failures) = (Mutex::new(waiting), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for worker in 0..SIDE_BY_SIDE {
            let (waiting, failures, place, site) = (&waiting, &failures, &place, &site);
            scope.spawn(move || {
                let got = site.dir.join(&format!("got-{worker}"));
                loop {
                    let next = waiting.lock().expect("the list").pop();
                    let Some((client, blksize, len)) = next else { return };
                    let _ = fs::remove_file(&got);
                    let fetch = || {
                        let mut command = client.command(&place.client, blksize, len, &got);
                        command.output().expect("the client runs")
                    };
                    let mut output = fetch();
                    // Where their first ACK was lost the OACK comes again, as it must (RFC 2347). Then atftp gives up; and curl
                    // reads no more of it than a block and four bytes, which with 8 is not yet the block size: it ends with
                    // the first block, or calls it malformed.
                    let was_confused = |output: &Output| match client {
                        _ if loss == "0%" => false,
                        Client::Curl if blksize == 8 => {
                            let bytes = fs::read(&got).unwrap_or_default();
                            let is_cut = bytes.len() == 8 && len > 8 && bytes == pattern(len)[..8];
                            is_cut || output.status.code() == Some(71)
                        }
                        Client::Curl => false,
                        _ => String::from_utf8_lossy(&output.stderr).contains("unexpected OACK"),
                    };
                    for _ in 0..5 {
                        if !was_confused(&output) {
                            break;
                        }
                        output = fetch();
                    }
                    // An empty file is none for curl.
                    let bytes = fs::read(&got).unwrap_or_default();
                    if !output.status.success() || bytes != pattern(len) {
                        failures.lock().expect("the failures").push(format!(
                            "{client:?}, blksize {blksize}, {len} bytes: {}, {} bytes came: {}{}",
                            output.status,
                            bytes.len(),
                            String::from_utf8_lossy(&output.stdout),
                            String::from_utf8_lossy(&output.stderr)
                        ));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("the failures");
    assert!(
        failures.is_empty(),
        "{config:?}, loss {loss}: {} of {}:\n{}",
        failures.len(),
        wanted.len(),
        failures.join("\n")
    );
    // Small windows by frame, large ones by segments; without frames nothing.
    let by_frame = sent(&server, &place.net, "frame");
    assert_eq!(by_frame > 0, config.is_empty(), "{by_frame} blocks by frame");
    assert!(sent(&server, &place.net, "segments") > 0, "windows by segments");
    server.stop();
}

const SOCKETS: &str = "[tftp]\nframes = \"off\"\n";

#[test]
fn every_client_gets_every_size_by_frames() {
    fetch_everything("", "0%");
}

#[test]
fn every_client_gets_every_size_by_sockets() {
    fetch_everything(SOCKETS, "0%");
}

#[test]
fn every_client_gets_every_size_by_frames_over_a_wire_that_loses() {
    fetch_everything("", "2%");
}

#[test]
fn every_client_gets_every_size_by_sockets_over_a_wire_that_loses() {
    fetch_everything(SOCKETS, "2%");
}

/// More requests than there are places, each in another's name.
const SPOOFED: u64 = 80_000;

#[test]
fn requests_in_others_names_take_no_place_from_a_client() {
    let site = Site::new(BRIDGE, "auto", FULL);
    let folder = site.dir.join("images/data");
    fs::create_dir_all(&folder).expect("a folder");
    let len = 300_000;
    fs::write(folder.join(format!("{len}.bin")), pattern(len)).expect("the file");
    let net = Net::flat();
    let server = site.serve(&net);
    let script = format!(
        "import socket, struct\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)\n\
         rrq = b'\\0\\1data/{len}.bin\\0octet\\0blksize\\x001428\\0'\n\
         for i in range({SPOOFED}):\n\
         \x20   source = struct.pack('!I', 0x7f400000 + i)\n\
         \x20   ip = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 28 + len(rrq), 0, 0, 64, 17, 0, source, bytes([127, 0, 0, 1]))\n\
         \x20   s.sendto(ip + struct.pack('!HHHH', 2000, 69, 8 + len(rrq), 0) + rrq, ('127.0.0.1', 0))\n"
    );
    run(net.server.command(tool("python3", "python3")).arg("-c").arg(script));
    let got = site.dir.join("got");
    let client = Client::Atftp { windowsize: Some(4), multicast: false };
    run(&mut client.command(&net.server, 1428, len, &got));
    assert!(fs::read(&got).expect("a file") == pattern(len), "the client's file");
    let outcome = |outcome: &str| {
        server.metric(&net, &format!("bootstorm_tftp_transfers_total{{outcome=\"{outcome}\"}}"))
    };
    assert_eq!(outcome("complete"), 1);
    let running = server.metric(&net, "bootstorm_tftp_transfers_running");
    assert!(outcome("timed-out") + running > SPOOFED / 2, "so many places were asked for: {running} running");
    // Not stopped in peace: that would wait for those who never asked.
    drop(server);
}

/// An archive (newc) of one file, filled up with zeros, which the kernel skips between archives, to `len` bytes.
fn archive(name: &str, len: usize) -> (Vec<u8>, Vec<u8>) {
    let field = |value: usize| format!("{value:08x}");
    let entry = |name: &str, mode: usize, content: &[u8]| {
        let mut out = format!("070701{}{}", field(0), field(mode)).into_bytes();
        for value in [0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0] {
            out.extend(field(value).into_bytes());
        }
        out.extend(name.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(content);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    };
    let frame = entry(name, 0o100_644, &[]).len() + entry("TRAILER!!!", 0, &[]).len();
    let content = pattern(len.saturating_sub(frame) / 4 * 4);
    let mut whole = entry(name, 0o100_644, &content);
    whole.extend(entry("TRAILER!!!", 0, &[]));
    assert!(whole.len() <= len, "an archive of {len} bytes has no room for its headers");
    whole.resize(len, 0);
    (whole, content)
}

/// A real machine's iPXE fetches archives by TFTP; the kernel, which came by HTTP, unpacks them and prints what it found.
fn a_machine_fetches_every_size(firmware: Firmware, number: u8, config: &str, loss: &str) {
    let site = Site::new(BRIDGE, "auto", &format!("{config}{FULL}"));
    site.add_linux();
    let folder = site.dir.join("images/fetch");
    fs::create_dir_all(&folder).expect("a folder");
    // iPXE asks for blocks of 1432 at most. Sizes that are no multiple of four are followed by so few zeros as make one.
    let fill = |len: usize| {
        let fill = len.next_multiple_of(4) - len;
        fs::write(folder.join(format!("z{fill}")), vec![0; fill]).expect("the fill");
        (fill > 0).then(|| format!("fetch/z{fill}"))
    };
    let mut names = vec!["tiny/initrd.gz".to_owned()];
    // How long it is once it is packed is not ours to say.
    let packed = fs::metadata(site.dir.join("images/tiny/initrd.gz")).expect("the initramfs").len();
    names.extend(fill(packed as usize));
    let mut sums = Vec::new();
    for len in [1431, 1432, 1433, 16 * 1432, 16 * 1432 + 1, 700 * 1432 + 717] {
        let name = format!("f{len}");
        let (bytes, content) = archive(&name, len);
        fs::write(folder.join(&name), bytes).expect("the archive");
        names.push(format!("fetch/{name}"));
        let plain = site.dir.join(&name);
        fs::write(&plain, content).expect("its content");
        let sum = run(Command::new("sha256sum").arg(&plain));
        sums.push(format!("{}  /{name}", sum.split(' ').next().expect("a sum")));
        names.extend(fill(len));
    }
    // UEFI's loader of the kernel has to be told the names, BIOS' has not.
    let mut script =
        "#!ipxe\nkernel http://10.77.0.1:4433/images/tiny/vmlinuz console=ttyS0 panic=1".to_owned();
    for (index, _) in names.iter().enumerate() {
        script.push_str(&format!(" initrd=i{index}"));
    }
    script.push_str(" || shell\n");
    for (index, name) in names.iter().enumerate() {
        script.push_str(&format!("initrd --name i{index} tftp://10.77.0.1/images/{name} || shell\n"));
    }
    script.push_str("boot || shell\n");
    fs::write(folder.join("boot.ipxe"), script).expect("the script");
    let place = Place::new(&site.dir.0, loss);
    let server = site.serve(&place.net);
    let spec = MachineSpec::new(firmware, number);
    site.ask(&["job", "add", "fetch", "--mac", &spec.mac]);
    // Behind the wire: the machine's bridge is in the client's namespace.
    place.client.ip("addr flush dev eth0");
    place.client.bridge("far", "");
    place.client.ip("link set eth0 master far");
    let mut machine = Machine::start(&spec, &place.client, "far", &site.dir.0);
    machine.wait_for(INIT_WORD, PATIENCE);
    let serial = machine.serial();
    for sum in sums {
        assert!(serial.contains(&format!("LAB-FILE {sum}")), "{sum} is not in\n{serial}");
    }
    let by_frame = sent(&server, &place.net, "frame");
    assert_eq!(by_frame > 700, config.is_empty(), "{by_frame} blocks by frame");
    server.stop();
}

#[test]
fn the_ipxe_of_a_bios_rom_fetches_every_size_over_a_wire_that_loses() {
    a_machine_fetches_every_size(Firmware::Bios, 60, "", "0.2%");
}

#[test]
#[ignore = "minutes of emulation: tools/test --all runs it"]
fn the_ipxe_of_a_bios_rom_fetches_every_size_by_sockets() {
    a_machine_fetches_every_size(Firmware::Bios, 61, SOCKETS, "0.2%");
}

#[test]
#[ignore = "minutes of emulation: tools/test --all runs it"]
fn uefi_firmware_and_debians_ipxe_fetch_every_size_by_frames() {
    a_machine_fetches_every_size(Firmware::Uefi, 62, "", "0.2%");
}

#[test]
#[ignore = "minutes of emulation: tools/test --all runs it"]
fn uefi_firmware_and_debians_ipxe_fetch_every_size_by_sockets() {
    a_machine_fetches_every_size(Firmware::Uefi, 63, SOCKETS, "0.2%");
}
