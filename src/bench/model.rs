//! How long a roll-out takes, by arithmetic: N machines, one image, one link, and what one client can take.
//!
//! The model knows three limits and nothing else: the server's link, a client's own link, and a client's ceiling by
//! protocol (a TFTP client waits for a round trip after each window; an HTTP client has a receive window). It does not
//! know loss, switches, disks or firmware's own pace: a measured ceiling ([`Ceiling::from_rows`]) brings those in.

use serde::{Deserialize, Serialize};

use super::report::Row;

/// Share of a link's bits that are payload: headers, gaps and acknowledgements take the rest.
const EFFICIENCY: f64 = 0.94;
/// What a TFTP DATA block costs on the wire beside its payload: TFTP 4, UDP 8, IP 20, Ethernet 14 + 4, preamble and
/// gap 20.
const BLOCK_OVERHEAD: f64 = 70.0;
/// Payload of one IP fragment on a link with MTU 1500, and what each further one costs: IP 20, Ethernet 38.
const FRAGMENT_LEN: f64 = 1480.0;
const FRAGMENT_OVERHEAD: f64 = 58.0;
/// An ACK on the wire: the smallest frame, preamble and gap.
const ACK_LEN: f64 = 84.0;
/// iPXE's TCP receive window since January 2023.
const HTTP_WINDOW: f64 = 2.0 * 1024.0 * 1024.0;
/// The simulated queue takes time with the square of them.
const CLIENTS_MAX: u32 = 100_000;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// The server's link, bits a second.
    pub nic_bits_per_s: f64,
    /// Each client's link, bits a second.
    pub client_bits_per_s: f64,
    /// Machines.
    pub clients: u32,
    /// Bytes each of them loads.
    pub image_bytes: u64,
    /// Round trip between server and client, seconds.
    pub rtt_s: f64,
}

/// How a client fetches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "protocol", rename_all = "lowercase")]
pub enum Method {
    /// One round trip for each window.
    Tftp {
        /// Payload of a block.
        blksize: u16,
        /// Blocks in a window.
        windowsize: u16,
    },
    /// One connection.
    Http,
}

impl Method {
    /// What the table shows unless it is told otherwise: what firmware does, what it could do, and HTTP.
    pub const USUAL: [Self; 6] = [
        Self::Tftp { blksize: 1428, windowsize: 1 },
        Self::Tftp { blksize: 1428, windowsize: 4 },
        Self::Tftp { blksize: 1428, windowsize: 16 },
        Self::Tftp { blksize: 1428, windowsize: 64 },
        Self::Tftp { blksize: 8192, windowsize: 1 },
        Self::Http,
    ];

    /// For people: `TFTP 1428 x 16`.
    pub fn name(&self) -> String {
        match self {
            Self::Tftp { blksize, windowsize } => format!("TFTP {blksize} x {windowsize}"),
            Self::Http => "HTTP".into(),
        }
    }

    /// What one client alone can take by this method, bytes a second, from round trip and links.
    fn by_arithmetic(&self, question: &Question) -> f64 {
        let line = question.client_bits_per_s.min(question.nic_bits_per_s) / 8.0;
        let limit = match *self {
            Self::Tftp { blksize, windowsize } => {
                let (block, window) = (f64::from(blksize), f64::from(windowsize));
                let further = ((block + 12.0) / FRAGMENT_LEN).ceil() - 1.0;
                let wire = block + BLOCK_OVERHEAD + further * FRAGMENT_OVERHEAD;
                window * block / (question.rtt_s + (window * wire + ACK_LEN) / line)
            }
            Self::Http if question.rtt_s > 0.0 => HTTP_WINDOW / question.rtt_s,
            Self::Http => f64::INFINITY,
        };
        limit.min(line * EFFICIENCY)
    }
}

/// What one client can take, and what the server can give to all, by one method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// How it fetches.
    #[serde(flatten)]
    pub method: Method,
    /// Bytes a second one client alone takes.
    pub client_bytes_per_s: f64,
    /// Bytes a second the server gives to all of them together; `None`: more than the link.
    pub server_bytes_per_s: Option<f64>,
    /// Where the figures are from.
    pub from: String,
}

impl Ceiling {
    /// The ceilings that follow from round trip and links alone.
    pub fn by_arithmetic(question: &Question) -> Vec<Self> {
        let ceiling = |method: Method| Self {
            method,
            client_bytes_per_s: method.by_arithmetic(question),
            server_bytes_per_s: None,
            from: "arithmetic".into(),
        };
        Method::USUAL.into_iter().map(ceiling).collect()
    }

    /// The same with what a run of this program measured for `server` in place of the arithmetic, where it measured
    /// it: one client's throughput (its round trip exchanged for the one asked about) and the best of any number of
    /// clients as the server's limit. Measured without a link in between, both are upper bounds.
    pub fn from_rows(question: &Question, rows: &[Row], server: &str) -> Vec<Self> {
        let mut ceilings = Self::by_arithmetic(question);
        for ceiling in &mut ceilings {
            let fits = |row: &&Row| {
                row.server == server
                    && row.unit == "MB/s"
                    && row.value > 0.0
                    && row.method() == Some(ceiling.method)
            };
            let best = rows.iter().filter(fits).filter(|row| row.rtt_s() == 0.0).map(|row| row.value * 1e6);
            ceiling.server_bytes_per_s = best.reduce(f64::max);
            let alone = rows.iter().filter(fits).filter(|row| row.clients == 1 && row.is_lossless());
            let nearest = alone.min_by(|a, b| {
                (a.rtt_s() - question.rtt_s).abs().total_cmp(&(b.rtt_s() - question.rtt_s).abs())
            });
            if let Some(row) = nearest {
                let (speed, by_arithmetic) = (row.value * 1e6, ceiling.client_bytes_per_s);
                let measured = match ceiling.method {
                    Method::Tftp { blksize, windowsize } => {
                        let window = f64::from(blksize) * f64::from(windowsize);
                        window / (window / speed + question.rtt_s - row.rtt_s()).max(f64::EPSILON)
                    }
                    Method::Http => speed,
                };
                ceiling.client_bytes_per_s = measured.min(by_arithmetic);
                ceiling.from = if measured < by_arithmetic { "measured" } else { "arithmetic" }.into();
            }
        }
        ceilings
    }
}

/// One line of the answer; seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// What it was reckoned from.
    #[serde(flatten)]
    pub ceiling: Ceiling,
    /// How many clients fill the link.
    pub clients_to_fill: f64,
    /// When all share the link, all of them end together: mean and last.
    pub sharing: f64,
    /// When only as many are admitted as fill the link: the mean over all.
    pub admission_mean: f64,
    /// The same: the last.
    pub admission_last: f64,
}

/// What the answers come to, in sentences: who is the limit, and what would help.
pub fn advice(question: &Question, answers: &[Answer]) -> Vec<String> {
    let of = |wanted: &dyn Fn(&Method) -> bool| answers.iter().find(|answer| wanted(&answer.ceiling.method));
    let (Some(http), Some(lockstep)) = (
        of(&|method| *method == Method::Http),
        of(&|method| matches!(method, Method::Tftp { windowsize: 1, blksize } if *blksize < 1500)),
    ) else {
        return Vec::new();
    };
    let mut said = Vec::new();
    let clients = f64::from(question.clients);
    if clients >= http.clients_to_fill {
        said.push(format!(
            "By HTTP {:.0} machines fill the server's link, so the link is the limit: only a faster one, or a second server, \
             shortens {}; letting in as many at once as fill it brings the mean to {} and costs the last {}.",
            http.clients_to_fill.ceil(),
            seconds(http.sharing),
            seconds(http.admission_mean),
            match http.admission_last - http.sharing {
                later if later < 0.5 => "nothing".into(),
                later => format!("{} more", seconds(later)),
            }
        ));
    } else {
        said.push(format!(
            "By HTTP all machines together do not fill the server's link: each one's own link or receive window is the limit, \
             and a faster server changes nothing about {}.",
            seconds(http.sharing)
        ));
    }
    if lockstep.sharing > http.sharing * 1.05 {
        said.push(format!(
            "By TFTP without a window, which is what UEFI and iPXE ask for, the round trip is the limit: {}, {:.1} times as long. \
             Load a small loader by TFTP and the rest by HTTP.",
            seconds(lockstep.sharing),
            lockstep.sharing / http.sharing
        ));
    } else {
        said.push(format!(
            "With so many machines TFTP without a window fills the link too, once {:.0} of them load at once; one machine alone \
             takes {} that way and {} by HTTP.",
            lockstep.clients_to_fill.ceil(),
            seconds(question.image_bytes as f64 / lockstep.ceiling.client_bytes_per_s),
            seconds(question.image_bytes as f64 / http.ceiling.client_bytes_per_s)
        ));
    }
    said.push(
        "Loading alone: power-on self-test, DHCP, disks and what the image then does come on top, a minute or more as a rule."
            .into(),
    );
    said
}

/// A time for people: `8.9 s`, `446 s`, `2.0 h`.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 6000.0 => format!("{s:.0} s"),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Reckons every ceiling's answer.
///
/// # Errors
/// A sentence when the question makes no sense.
pub fn answer(question: &Question, ceilings: &[Ceiling]) -> Result<Vec<Answer>, String> {
    if !(1..=CLIENTS_MAX).contains(&question.clients) {
        return Err(format!("clients: expected 1 to {CLIENTS_MAX}"));
    }
    for (name, value) in [("nic", question.nic_bits_per_s), ("client link", question.client_bits_per_s)] {
        if !(value.is_finite() && value >= 1000.0) {
            return Err(format!("{name}: expected at least 1000 bits a second"));
        }
    }
    if question.image_bytes == 0 || !(0.0..=10.0).contains(&question.rtt_s) {
        return Err("expected an image of at least one byte and a round trip of at most 10 s".into());
    }
    Ok(ceilings.iter().map(|ceiling| answer_one(question, ceiling)).collect())
}

fn answer_one(question: &Question, ceiling: &Ceiling) -> Answer {
    let image = question.image_bytes as f64;
    let link = question.nic_bits_per_s / 8.0 * EFFICIENCY;
    let link = ceiling.server_bytes_per_s.map_or(link, |server| server.min(link));
    let each = ceiling.client_bytes_per_s.min(link);
    let (mean, last) = admission(question.clients, image, link, each);
    Answer {
        ceiling: ceiling.clone(),
        clients_to_fill: link / each,
        sharing: (f64::from(question.clients) * image / link).max(image / each),
        admission_mean: mean,
        admission_last: last,
    }
}

/// First come, first served: the clients at the head take all they can, the one behind them what is left, the rest
/// wait. Mean and last end, in seconds. Clients with equally much left are one group, so the work is in the number of
/// groups and not of clients.
fn admission(clients: u32, image: f64, link: f64, each: f64) -> (f64, f64) {
    // (bytes left, clients), in the order of arrival.
    let mut groups = std::collections::VecDeque::from([(image, f64::from(clients))]);
    let (mut now, mut sum) = (0.0, 0.0);
    let full = (link / each + 1e-9).floor();
    let left_over = (link - full * each).max(0.0);
    while !groups.is_empty() {
        // Split the groups so that everybody in one of them is served at the same rate.
        let mut places = full;
        let mut served = Vec::new();
        let mut partial = left_over > each * 1e-9;
        let mut index = 0;
        while index < groups.len() && (places > 0.0 || partial) {
            let (left, count) = groups[index];
            let (take, rate) = if places > 0.0 { (count.min(places), each) } else { (1.0, left_over) };
            if take < count {
                groups[index].1 = take;
                groups.insert(index + 1, (left, count - take));
            }
            served.push(rate);
            if places > 0.0 {
                places -= take
            } else {
                partial = false
            }
            index += 1;
        }
        let step =
            served.iter().zip(&groups).map(|(rate, (left, _))| left / rate).fold(f64::INFINITY, f64::min);
        now += step;
        for (rate, group) in served.iter().zip(groups.iter_mut()) {
            group.0 -= rate * step;
        }
        let done = |group: &(f64, f64)| group.0 <= image * 1e-9;
        sum += groups.iter().filter(|group| done(group)).map(|group| group.1 * now).sum::<f64>();
        groups.retain(|group| !done(group));
    }
    (sum / f64::from(clients), now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIGABIT: f64 = 1e9;
    const LOCKSTEP: Method = Method::Tftp { blksize: 1428, windowsize: 1 };
    const WINDOW_16: Method = Method::Tftp { blksize: 1428, windowsize: 16 };

    fn question(nic: f64, clients: u32) -> Question {
        Question {
            nic_bits_per_s: nic * GIGABIT,
            client_bits_per_s: GIGABIT,
            clients,
            image_bytes: 500 << 20,
            rtt_s: 0.001,
        }
    }

    fn answer_for(question: &Question, method: Method) -> Answer {
        let answers = answer(question, &Ceiling::by_arithmetic(question)).unwrap();
        answers.into_iter().find(|answer| answer.ceiling.method == method).unwrap()
    }

    /// Within 2 %, or within what rounding to whole seconds took from the reference.
    fn near(value: f64, expected: f64) -> bool {
        (value - expected).abs() <= (expected * 0.02).max(0.6)
    }

    #[test]
    fn storms_take_what_the_reference_table_says() {
        // NIC in Gbit/s, clients, then sharing and mean with admission for lockstep, window 16 and HTTP.
        let table = [
            (1.0, 100, [446.0, 433.0, 446.0, 236.0, 446.0, 225.0]),
            (1.0, 1000, [4457.0, 2414.0, 4457.0, 2242.0, 4457.0, 2231.0]),
            (1.0, 10000, [44600.0, 22500.0, 44600.0, 22300.0, 44600.0, 22300.0]),
            (10.0, 100, [372.0, 372.0, 45.0, 38.0, 45.0, 24.0]),
            (10.0, 1000, [446.0, 433.0, 446.0, 237.0, 446.0, 225.0]),
            (10.0, 10000, [4457.0, 2414.0, 4457.0, 2242.0, 4457.0, 2231.0]),
            (25.0, 100, [372.0, 372.0, 27.0, 27.0, 18.0, 11.0]),
            (25.0, 1000, [372.0, 372.0, 178.0, 103.0, 178.0, 91.0]),
            (25.0, 10000, [1783.0, 1083.0, 1783.0, 905.0, 1783.0, 894.0]),
            (100.0, 1000, [372.0, 372.0, 45.0, 38.0, 45.0, 25.0]),
            (100.0, 10000, [446.0, 433.0, 446.0, 237.0, 446.0, 225.0]),
        ];
        for (nic, clients, expected) in table {
            let question = question(nic, clients);
            for (method, pair) in [LOCKSTEP, WINDOW_16, Method::Http].into_iter().zip(expected.chunks(2)) {
                let answer = answer_for(&question, method);
                let says = format!("{nic}G {clients} {}: {answer:?}, expected {pair:?}", method.name());
                assert!(near(answer.sharing, pair[0]) && near(answer.admission_mean, pair[1]), "{says}");
            }
        }
    }

    #[test]
    fn ceilings_of_one_client_follow_round_trip_and_window() {
        let at =
            |rtt_s: f64, method: Method| method.by_arithmetic(&Question { rtt_s, ..question(10.0, 1) }) / 1e6;
        for (rtt_s, blksize, windowsize, expected) in [
            (0.0002, 1428, 1, 6.7),
            (0.001, 1428, 1, 1.41),
            (0.001, 8192, 1, 7.7),
            (0.001, 1428, 16, 19.2),
            (0.001, 1428, 64, 52.0),
        ] {
            let value = at(rtt_s, Method::Tftp { blksize, windowsize });
            assert!((value - expected).abs() <= expected * 0.02, "{blksize} x {windowsize}: {value}");
        }
        assert!((at(0.001, Method::Http) - 117.5).abs() < 0.1, "the line is the limit");
        assert!((at(0.1, Method::Http) - 21.0).abs() < 0.1, "the window is the limit");
    }

    #[test]
    fn the_mean_with_admission_is_never_worse_than_sharing() {
        for clients in [1, 2, 7, 99, 1000, 54321] {
            for answer in {
                let question = question(10.0, clients);
                answer(&question, &Ceiling::by_arithmetic(&question)).unwrap()
            } {
                assert!(answer.admission_mean <= answer.sharing * 1.001, "{clients}: {answer:?}");
                assert!(answer.admission_last >= answer.sharing * 0.999, "{clients}: {answer:?}");
            }
        }
    }

    #[test]
    fn the_server_is_a_limit_where_it_was_measured_to_be_one() {
        let question = question(10.0, 1000);
        let row = |clients: u32, value: f64, rtt: &str| Row {
            work: "tftp".into(),
            server: "bootstorm".into(),
            unit: "MB/s".into(),
            settings: [("blksize", "1428"), ("windowsize", "16"), ("rtt", rtt)]
                .map(|(key, value)| (key.into(), value.into()))
                .into(),
            clients,
            value,
            ..Row::default()
        };
        let rows = [row(1, 100.0, "0s"), row(64, 500.0, "0s"), row(1, 15.0, "1ms")];
        let ceilings = Ceiling::from_rows(&question, &rows, "bootstorm");
        let ceiling = ceilings.iter().find(|ceiling| ceiling.method == WINDOW_16).unwrap();
        assert!((ceiling.client_bytes_per_s - 15e6).abs() < 1.0 && ceiling.server_bytes_per_s == Some(500e6));
        assert_eq!(ceiling.from, "measured");
        let answers = answer(&question, &ceilings).unwrap();
        let answer = answers.iter().find(|answer| answer.ceiling.method == WINDOW_16).unwrap();
        assert!(near(answer.sharing, 1000.0 * 524.288 / 500.0), "{answer:?}");
        assert!(Ceiling::from_rows(&question, &rows, "nginx").iter().all(|c| c.from == "arithmetic"));
    }

    #[test]
    fn advice_names_the_limit_and_the_way_out() {
        let said = |question: &Question| {
            advice(question, &answer(question, &Ceiling::by_arithmetic(question)).unwrap()).join("\n")
        };
        let full = said(&question(10.0, 1000));
        assert!(
            full.contains("10 machines fill the server's link") && full.contains("mean to 225 s"),
            "{full}"
        );
        assert!(full.contains("fills the link too, once 834 of them"), "{full}");
        let few = said(&question(10.0, 5));
        assert!(
            few.contains("do not fill") && few.contains("372 s, 83.") && few.contains(" times as long"),
            "{few}"
        );
        assert!(advice(&question(1.0, 1), &[]).is_empty());
    }

    #[test]
    fn senseless_questions_are_refused() {
        let good = question(10.0, 10);
        for bad in [
            Question { clients: 0, ..good },
            Question { clients: CLIENTS_MAX + 1, ..good },
            Question { nic_bits_per_s: f64::NAN, ..good },
            Question { client_bits_per_s: 0.0, ..good },
            Question { image_bytes: 0, ..good },
            Question { rtt_s: -1.0, ..good },
        ] {
            assert!(answer(&bad, &Ceiling::by_arithmetic(&good)).is_err(), "{bad:?}");
        }
        assert!(answer(&Question { clients: CLIENTS_MAX, ..good }, &Ceiling::by_arithmetic(&good)).is_ok());
    }
}
