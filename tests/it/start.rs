//! The start: whoever is answered first is answered with everything that was stored.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Instant;

use labkit::Process;

use crate::server::{SOON, Site, binary};

fn mac(machine: u32) -> String {
    let [_, a, b, c] = machine.to_be_bytes();
    format!("52:54:01:{a:02x}:{b:02x}:{c:02x}")
}

/// The script of one machine from a server that may not listen yet.
fn first_script(to: SocketAddr, mac: &str) -> String {
    let start = Instant::now();
    let mut stream = loop {
        match TcpStream::connect(to) {
            Ok(stream) => break stream,
            Err(error) => assert!(start.elapsed() < SOON, "nobody listens: {error}"),
        }
    };
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    write!(
        stream,
        "GET /ipxe?mac={mac} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: iPXE/1.21.1\r\nConnection: close\r\n\r\n"
    )
    .expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn the_first_answer_of_all_knows_every_job() {
    let machines = if std::env::var_os("LAB_ALL").is_some() { 100_000 } else { 3_000 };
    // Several loops share it, so the server has to know it beforehand.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    let rest = format!(
        "[dhcp]\nmode = \"off\"\n[tftp]\nlisten = []\n[http]\nlisten = [\"{free}\"]\n[admin]\nlisten = \"\"\n"
    );
    let site = Site::new("lo", "auto", &rest);
    let serve = || {
        let mut command = Command::new(binary());
        command.arg("serve").arg("--config").arg(site.config()).args(["--log", "warn"]);
        Process::spawn("bootstorm", &mut command, &site.dir.join("server.log"))
    };
    let stop = |mut process: Process| {
        process.signal("TERM");
        assert!(process.wait(SOON).success(), "{}", process.output());
    };
    let mut first = serve();
    first.wait_for("bootstorm ready", SOON);
    assert!(!first_script(free, &mac(0)).contains("job j"), "there is none yet");
    for some in (0..machines).step_by(10_000) {
        let mut rows = String::from("mac,action\n");
        for machine in some..(some + 10_000).min(machines) {
            writeln!(rows, "{},shell", mac(machine)).expect("a String grows");
        }
        let path = site.dir.join("rows.csv");
        fs::write(&path, rows).expect("the rows");
        site.ask(&["job", "add", "--csv", path.to_str().expect("a path")]);
    }
    stop(first);
    // A machine that has asked before may have had its job.
    for job in [machines, machines - 1, machines - 2] {
        let again = serve();
        let start = Instant::now();
        let script = first_script(free, &mac(job - 1));
        println!("{machines} jobs: a script after {:?}", start.elapsed());
        assert!(script.contains(&format!("job j{job}")), "{script}");
        stop(again);
    }
}
