//! A web server inside a namespace that a test answers for, request by request.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{Shutdown, shutdown};

use crate::Namespace;

/// A client that sends nothing for so long has gone away.
const IDLE: Duration = Duration::from_secs(120);
/// More than any client of the lab sends.
const HEAD_MAX: usize = 64 * 1024;

/// What a client asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// `GET`, `HEAD`, ...
    pub method: String,
    /// Path and query as they came.
    pub target: String,
    /// First and last byte of a `Range`.
    pub range: Option<(usize, usize)>,
}

/// What it gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// 200 with this body, or 206 with a part of it.
    Content(Vec<u8>),
    /// 404.
    Missing,
}

/// The server. Ends on drop.
#[derive(Debug)]
pub struct WebHost {
    listener: Arc<TcpListener>,
}

impl WebHost {
    /// Listens at `addr` inside `namespace`; `answer` is called for one request at a time, in order of arrival.
    pub fn start(
        namespace: &Namespace,
        addr: SocketAddrV4,
        answer: impl FnMut(&Asked) -> Answer + Send + 'static,
    ) -> Self {
        let path = format!("/run/netns/{}", namespace.name());
        // A socket belongs to the namespace of the thread that made it.
        let bound = thread::spawn(move || {
            let file = File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
            setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
            TcpListener::bind(addr).unwrap_or_else(|e| panic!("listen at {addr}: {e}"))
        });
        let listener = Arc::new(bound.join().expect("the namespace can be listened in"));
        let answer = Arc::new(Mutex::new(answer));
        let accepting = Arc::clone(&listener);
        thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let answer = Arc::clone(&answer);
                thread::spawn(move || {
                    // A client may leave at any time.
                    let _ = serve(&stream, |asked| (answer.lock().expect("no answer has panicked"))(asked));
                });
            }
        });
        Self { listener }
    }
}

impl Drop for WebHost {
    fn drop(&mut self) {
        use std::os::fd::AsRawFd;
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }
}

fn serve(stream: &TcpStream, mut answer: impl FnMut(&Asked) -> Answer) -> std::io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(asked) = read(&mut reader)? {
        let (head, body) = match answer(&asked) {
            Answer::Missing => ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(), Vec::new()),
            Answer::Content(body) => part(&body, asked.range),
        };
        let mut out = head.into_bytes();
        if asked.method != "HEAD" {
            out.extend_from_slice(&body);
        }
        (&*stream).write_all(&out)?;
    }
    Ok(())
}

fn part(body: &[u8], range: Option<(usize, usize)>) -> (String, Vec<u8>) {
    match range {
        Some((first, last)) if first <= last && last < body.len() => {
            let head = format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{last}/{}\r\nContent-Length: {}\r\n\r\n",
                body.len(),
                last - first + 1
            );
            (head, body[first..=last].to_vec())
        }
        _ => (format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()), body.to_vec()),
    }
}

/// The next request; `None` when the client is done.
fn read(reader: &mut BufReader<&TcpStream>) -> std::io::Result<Option<Asked>> {
    let mut asked: Option<Asked> = None;
    let mut total = 0;
    loop {
        let mut line = String::new();
        let len = reader.read_line(&mut line)?;
        total += len;
        if len == 0 || total > HEAD_MAX {
            return Ok(None);
        }
        let line = line.trim_end();
        match &mut asked {
            None => {
                let mut words = line.split(' ');
                let mut word = || words.next().unwrap_or_default().to_owned();
                asked = Some(Asked { method: word(), target: word(), range: None });
            }
            Some(_) if line.is_empty() => return Ok(asked),
            Some(asked) => {
                let lower = line.to_ascii_lowercase();
                if let Some(range) = lower.strip_prefix("range:") {
                    let bounds = range.trim().strip_prefix("bytes=").and_then(|range| range.split_once('-'));
                    asked.range =
                        bounds.and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
                }
            }
        }
    }
}
