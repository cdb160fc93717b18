//! Carries a [`Machine`] out over real sockets: one machine, one thread, until it has booted or given up.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use super::relay::Relay;
use super::{Command, Config, Input, Machine, Outcome};
use crate::wire::http::parse_response_head;

/// HTTP is given up after this long without a byte: iPXE's own watchdog.
const HTTP_PATIENCE: Duration = Duration::from_secs(120);
/// Longest head of an answer.
const HEAD_MAX: usize = 16 * 1024;
const READ_LEN: usize = 256 * 1024;

/// Where the server is, with the ports it really has.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// Address DHCP goes to.
    pub server: Ipv4Addr,
    /// Instead of 67.
    pub dhcp: u16,
    /// Instead of 4011.
    pub boot_server: u16,
    /// Instead of 69.
    pub tftp: u16,
    /// The relay the machine is behind.
    pub relay: Relay,
}

/// A stage and when it was over.
#[derive(Clone, Debug, Serialize)]
pub struct StageReport {
    /// What.
    pub name: String,
    /// Milliseconds since power-on.
    pub at_ms: u64,
    /// Bytes delivered by it.
    pub bytes: u64,
    /// More about it.
    pub note: String,
}

/// A boot's story.
#[derive(Clone, Debug, Serialize)]
pub struct BootReport {
    /// Firmware.
    pub kind: super::Kind,
    /// In order.
    pub stages: Vec<StageReport>,
    /// Bytes of the image.
    pub bytes: u64,
    /// BLAKE3 of the image's last file.
    pub hash: String,
    /// What would run, or why nothing does.
    pub outcome: String,
    /// An image would run.
    pub booted: bool,
}

struct Runner<'a> {
    machine: Machine,
    endpoints: &'a Endpoints,
    dhcp: UdpSocket,
    /// The machine's address, once it has one.
    address: Ipv4Addr,
    boot_server: Option<UdpSocket>,
    tftp: Option<(u32, UdpSocket)>,
    progress: &'a dyn Fn(u64),
    may: &'a dyn Fn(&Command) -> bool,
    started: Instant,
    report: BootReport,
    over: bool,
}

/// Boots one machine. `progress` is told of image bytes as they arrive.
///
/// # Errors
/// When a socket cannot be opened; a boot that fails is a report.
pub fn boot(
    config: Config,
    endpoints: &Endpoints,
    deadline: Duration,
    progress: &dyn Fn(u64),
) -> io::Result<BootReport> {
    boot_while(config, endpoints, deadline, progress, &|_| true)
}

/// [`boot`], cut off at the first command that `may` refuses, as if the machine lost power there.
///
/// # Errors
/// When a socket cannot be opened; a boot that fails is a report.
pub fn boot_while(
    config: Config,
    endpoints: &Endpoints,
    deadline: Duration,
    progress: &dyn Fn(u64),
    may: &dyn Fn(&Command) -> bool,
) -> io::Result<BootReport> {
    let report = BootReport {
        kind: config.kind,
        stages: Vec::new(),
        bytes: 0,
        hash: String::new(),
        outcome: String::new(),
        booted: false,
    };
    let dhcp = UdpSocket::bind(SocketAddrV4::new(endpoints.relay.giaddr, 0))?;
    let mut runner = Runner {
        machine: Machine::new(config),
        endpoints,
        dhcp,
        address: Ipv4Addr::UNSPECIFIED,
        boot_server: None,
        tftp: None,
        progress,
        may,
        started: Instant::now(),
        report,
        over: false,
    };
    runner.machine.start(runner.started);
    runner.carry_out()?;
    while !runner.over {
        if runner.started.elapsed() > deadline {
            runner.report.outcome = format!("not booted after {deadline:?}");
            break;
        }
        runner.wait()?;
        runner.carry_out()?;
    }
    Ok(runner.report)
}

impl Runner<'_> {
    fn carry_out(&mut self) -> io::Result<()> {
        while let Some(command) = self.machine.poll_command() {
            if self.over {
                return Ok(());
            }
            if !(self.may)(&command) {
                self.over = true;
                self.report.outcome = "cut off".into();
                return Ok(());
            }
            match command {
                Command::Dhcp { to, bytes } if to.ip().is_broadcast() => {
                    if let Some(relayed) = self.endpoints.relay.to_server(&bytes) {
                        self.dhcp.send_to(&relayed, (self.endpoints.server, self.endpoints.dhcp))?;
                    }
                }
                Command::Dhcp { to, bytes } => {
                    let socket = match self.boot_server.take() {
                        Some(socket) => socket,
                        None => UdpSocket::bind((self.address, 0))?,
                    };
                    socket.send_to(&bytes, (*to.ip(), self.endpoints.boot_server))?;
                    self.boot_server = Some(socket);
                }
                Command::Tftp { socket, to, bytes } => {
                    if self.tftp.as_ref().is_none_or(|(number, _)| *number != socket) {
                        self.tftp = Some((socket, UdpSocket::bind((self.address, 0))?));
                    }
                    let port = if to.port() == 69 { self.endpoints.tftp } else { to.port() };
                    if let Some((_, socket)) = &self.tftp {
                        socket.send_to(&bytes, (*to.ip(), port))?;
                    }
                }
                Command::Http { id, method, server, path, user_agent } => {
                    if self.http(id, method, server, &path, user_agent).is_err() {
                        self.machine.handle(Instant::now(), Input::HttpFailed { id });
                    }
                }
                Command::UseAddress(address) => self.address = address,
                Command::Stage(stage) => self.report.stages.push(StageReport {
                    name: stage.name,
                    at_ms: self.started.elapsed().as_millis() as u64,
                    bytes: stage.bytes,
                    note: stage.note,
                }),
                Command::Done(outcome) => {
                    self.over = true;
                    match outcome {
                        Outcome::Booted { what, bytes, hash } => {
                            self.report.booted = true;
                            (self.report.outcome, self.report.bytes, self.report.hash) = (what, bytes, hash);
                        }
                        Outcome::Local => self.report.outcome = "local disk".into(),
                        Outcome::Failed(why) => self.report.outcome = why,
                    }
                }
            }
        }
        Ok(())
    }

    /// Waits for the one socket that matters now, or the machine's deadline.
    fn wait(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let until = self.machine.poll_timeout().unwrap_or(now + Duration::from_millis(100));
        let wait = until.saturating_duration_since(now).max(Duration::from_millis(1));
        let tftp = self.tftp.as_ref().map(|(number, socket)| (Some(*number), socket));
        // While a loader is fetched nothing is expected of DHCP, and afterwards the transfer's port is done with.
        let (number, socket) = match tftp {
            Some(tftp) if self.report.stages.iter().all(|stage| !stage.name.starts_with("loader")) => tftp,
            _ => (None, self.boot_server.as_ref().unwrap_or(&self.dhcp)),
        };
        socket.set_read_timeout(Some(wait))?;
        let mut buffer = [0; 65536];
        match socket.recv_from(&mut buffer) {
            Ok((len, SocketAddr::V4(from))) => {
                let now = Instant::now();
                match number {
                    Some(socket) => {
                        self.machine.handle(now, Input::Tftp { socket, from, bytes: &buffer[..len] })
                    }
                    None => {
                        let relayed = Relay::to_machine(&buffer[..len]);
                        let bytes = relayed.as_deref().unwrap_or(&buffer[..len]);
                        self.machine.handle(now, Input::Dhcp { from, bytes });
                        if !self.report.stages.is_empty() {
                            self.boot_server = None;
                        }
                    }
                }
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        self.machine.handle_timeout(Instant::now());
        Ok(())
    }

    fn http(
        &mut self,
        id: u32,
        method: &str,
        server: SocketAddrV4,
        path: &str,
        user_agent: &str,
    ) -> io::Result<()> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        if !self.address.is_unspecified() {
            socket.bind(&SocketAddrV4::new(self.address, 0).into())?;
        }
        socket.connect_timeout(&server.into(), HTTP_PATIENCE)?;
        let mut stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(HTTP_PATIENCE))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {server}\r\nUser-Agent: {user_agent}\r\nConnection: close\r\n\r\n"
        )?;
        let mut buffer = vec![0; READ_LEN];
        let mut have = 0;
        let (head_len, len) = loop {
            let count = stream.read(&mut buffer[have..HEAD_MAX])?;
            if count == 0 {
                return Err(bad("the answer ended in its head"));
            }
            have += count;
            let parsed = parse_response_head(&buffer[..have]).map_err(|_| bad("the answer is no HTTP"))?;
            if let Some(head) = parsed {
                let len = head.header("Content-Length").and_then(|len| len.parse().ok());
                let content_type = head.header("Content-Type").unwrap_or_default();
                let input = Input::HttpHead { id, status: head.status.code(), len, content_type };
                self.machine.handle(Instant::now(), input);
                break (head.len, len);
            }
            if have == HEAD_MAX {
                return Err(bad("the answer's head is too long"));
            }
        };
        let mut left = if method == "HEAD" { 0 } else { len.unwrap_or(u64::MAX) };
        let mut part = head_len..have;
        while left > 0 {
            if part.is_empty() {
                let count = stream.read(&mut buffer)?;
                if count == 0 {
                    break;
                }
                part = 0..count;
            }
            left = left.saturating_sub(part.len() as u64);
            self.machine.handle(Instant::now(), Input::HttpBody { id, bytes: &buffer[part.clone()] });
            (self.progress)(part.len() as u64);
            part = 0..0;
        }
        self.machine.handle(Instant::now(), Input::HttpEnd { id });
        Ok(())
    }
}
