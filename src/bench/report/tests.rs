use super::*;

fn point(work: &str, megabytes: u64, seconds: f64) -> Point {
    Point {
        work: work.into(),
        seconds,
        bytes: megabytes * 1_000_000,
        units: megabytes * 700,
        unit: "blocks".into(),
        latency: Some(Latency { p50: 100, p90: 200, p99: 1500, max: 25_000 }),
        ..Point::default()
    }
}

fn sample(megabytes: u64, cpu_seconds: f64) -> Result<Sample, String> {
    Ok(Sample { point: point("tftp", megabytes, 1.0), cpu_seconds })
}

fn trial() -> Trial {
    Trial {
        work: "tftp".into(),
        settings: [("blksize", "1428"), ("windowsize", "16")].map(|(k, v)| (k.into(), v.into())).into(),
        clients: 64,
        servers: vec![
            (OURS.into(), vec![sample(200, 0.2), sample(300, 0.3), sample(400, 0.4)]),
            ("dnsmasq".into(), vec![sample(100, 0.4), sample(100, 0.4), Err("it fell over".into())]),
        ],
    }
}

pub(super) fn report() -> Report {
    let mut rows = trial().rows();
    let more = rows.clone().into_iter().map(|row| Row { clients: 1, value: row.value / 30.0, ..row });
    rows.extend(more.collect::<Vec<_>>());
    for (rtt, loss, value) in
        [("1ms", "0%", 90.0), ("5ms", "0%", 18.0), ("1ms", "0.5%", 9.0), ("5ms", "0.5%", 3.0)]
    {
        for work in ["tftp", "http"] {
            let mut row = Row {
                work: work.into(),
                value,
                clients: 1,
                server: OURS.into(),
                unit: "MB/s".into(),
                ..Row::default()
            };
            row.settings.extend([("rtt".into(), rtt.into()), ("loss".into(), loss.into())]);
            rows.push(row);
        }
    }
    Report {
        format: FORMAT,
        title: "A comparison".into(),
        servers: vec![Server { name: OURS.into(), version: "0.1".into(), settings: "defaults".into() }],
        missing: vec![Missing { server: "atftpd".into(), package: "atftpd".into(), why: String::new() }],
        rows,
        notes: vec!["veth is not a network card".into()],
        ..Report::default()
    }
}

#[test]
fn ratios_are_taken_within_a_round_and_then_their_median() {
    let rows = trial().rows();
    assert_eq!(rows[0].server, OURS);
    assert_eq!((rows[0].value, rows[0].value_spread, rows[0].ratio), (300.0, [200.0, 400.0], Some(1.0)));
    assert_eq!((rows[1].value, rows[1].rounds), (100.0, 2));
    // 200/100 and 300/100; the third round has no partner.
    assert_eq!((rows[1].ratio, rows[1].spread), (Some(2.5), Some([2.0, 3.0])));
    assert_eq!(rows[1].error.as_deref(), Some("it fell over"));
    let gib = 1e8 / f64::from(1 << 30);
    assert!((rows[1].cpu.unwrap() - 0.4 / gib).abs() < 1e-9);
    assert!((rows[1].cpu_ratio.unwrap() - 0.25).abs() < 1e-9, "a quarter of the cost per byte");
    assert_eq!((rows[0].unit.as_str(), rows[0].cpu_unit.as_str()), ("MB/s", "GiB"));
}

#[test]
fn exchanges_are_counted_by_the_million() {
    let point = Point {
        work: "dhcp".into(),
        units: 50_000,
        unit: "exchanges".into(),
        seconds: 0.5,
        ..Point::default()
    };
    let trial = Trial {
        work: "dhcp".into(),
        servers: vec![(OURS.into(), vec![Ok(Sample { point, cpu_seconds: 0.25 })])],
        ..Trial::default()
    };
    let row = &trial.rows()[0];
    assert_eq!((row.value, row.unit.as_str()), (100_000.0, "exchanges/s"));
    assert_eq!((row.cpu, row.cpu_unit.as_str()), (Some(5.0), "million exchanges"));
}

#[test]
fn a_server_that_gave_nothing_has_a_row_that_says_why() {
    let trial = Trial {
        work: "tftp".into(),
        servers: vec![(OURS.into(), vec![sample(1, 0.1)]), ("atftpd".into(), vec![Err("refused".into())])],
        ..Trial::default()
    };
    let rows = trial.rows();
    assert_eq!((rows[1].rounds, rows[1].ratio, rows[1].error.as_deref()), (0, None, Some("refused")));
    let text = text(&Report { rows, ..Report::default() }, None);
    assert!(text.contains("atftpd") && text.contains("no figure: refused"), "{text}");
}

#[test]
fn a_report_survives_json_and_its_rows_have_the_promised_keys() {
    let report = report();
    let json = serde_json::to_value(&report).unwrap();
    for key in ["work", "server", "value", "unit", "cpu", "ratio", "spread"] {
        assert!(json["rows"][1].get(key).is_some_and(|value| !value.is_null()), "{key}");
    }
    assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
}

#[test]
fn the_table_fits_a_terminal_and_names_what_is_missing() {
    let text = text(&report(), None);
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    assert!(text.contains("apt-get install --no-install-recommends atftpd"));
    assert!(text.contains("2.50 [2.00..3.00]"));
    assert!(text.contains("in one round: it fell over"));
}

#[test]
fn an_earlier_run_is_compared_row_by_row() {
    let now = report();
    let mut then = now.clone();
    for row in &mut then.rows {
        row.value /= 1.1;
        row.ratio = row.ratio.map(|ratio| ratio * 1.3);
    }
    let change = Report::change(&now.rows[1], &then).unwrap();
    assert!((change.value - 1.1).abs() < 1e-9 && (change.ratio.unwrap() - 1.0 / 1.3).abs() < 1e-9);
    let agreement = now.agreement_with(&then).unwrap();
    assert_eq!((agreement.ratios, agreement.within), (2, 0), "only peers' ratios count");
    assert_eq!((agreement.cpu_ratios, agreement.cpu_within, agreement.apart.len()), (2, 2, 2));
    assert!((agreement.median - 1.3).abs() < 1e-9);
    assert_eq!(now.agreement_with(&Report::default()), None);
    let now = Report { agreement: Some(agreement), ..now };
    let said = text(&now, Some(&then));
    assert!(said.contains("since then: value +10 %") && said.contains("0 of 2 throughput ratios"), "{said}");
    let page = page(&now, Some(&then));
    assert!(page.contains("Since then") && page.contains("2 of 2 CPU ratios agree within 15 %"));
}

#[test]
fn a_ratio_is_known_once_most_rounds_lie_close_together() {
    assert_eq!(interval(&[]), None);
    assert_eq!(interval(&[2.0]), Some([2.0, 2.0]));
    assert_eq!(interval(&[3.0, 1.0, 2.0]), Some([1.0, 3.0]), "of three rounds none can be left out");
    // The binomial distribution: one at either end of seven rounds, three of eleven.
    assert_eq!(interval(&[9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.0]), Some([1.0, 5.0]));
    let eleven: Vec<f64> = (0..11).map(f64::from).collect();
    assert_eq!(interval(&eleven), Some([2.0, 8.0]));

    let with_peer = |values: &[u64]| Trial {
        work: "tftp".into(),
        servers: vec![
            (OURS.into(), values.iter().map(|value| sample(*value, 0.1)).collect()),
            ("dnsmasq".into(), values.iter().map(|_| sample(100, 0.1)).collect()),
            (NULL.into(), values.iter().map(|value| sample(value * value, 0.1)).collect()),
        ],
        ..Trial::default()
    };
    assert!(with_peer(&[100, 105, 110]).is_settled(), "what the null responder does is no ratio to a peer");
    assert!(!with_peer(&[100, 105, 150]).is_settled());
    assert!(with_peer(&[50, 100, 101, 102, 103, 104, 900]).is_settled(), "one round at either end may stray");
    let rows = with_peer(&[100, 105, 150]).rows();
    assert_eq!(
        (rows[1].ratios.as_slice(), rows[1].interval),
        ([1.0, 1.05, 1.5].as_slice(), Some([1.0, 1.5]))
    );
    let mut report = Report { rows, ..Report::default() };
    report.reckon_confidence();
    assert_eq!((report.confidence.ratios, report.confidence.settled), (1, 0));
    let text = text(&report, None);
    assert!(text.contains("not settled: 3 rounds leave it between 1.00 and 1.50"), "{text}");
    assert!(text.contains("0 of 1 ratios are settled"), "{text}");
}

#[test]
fn a_row_says_when_the_load_was_hardly_faster_than_the_server() {
    let busy = |blocks: u64, load: f64, server: f64| {
        let point = Point {
            work: "tftp".into(),
            units: blocks,
            seconds: 1.0,
            load_cpu_seconds: load,
            ..Point::default()
        };
        Ok(Sample { point, cpu_seconds: server })
    };
    let judged = |servers: Vec<(&str, Result<Sample, String>)>| {
        let servers = servers.into_iter().map(|(name, sample)| (name.to_owned(), vec![sample])).collect();
        let mut trial = Trial { work: "tftp".into(), servers, ..Trial::default() };
        trial.judge_load();
        let row = trial.rows().remove(0);
        (row.load_limited, (row.load_headroom.unwrap() * 100.0).round() / 100.0, row.load_remark().is_some())
    };
    // Against nothing else than its own CPU.
    assert_eq!(judged(vec![(OURS, busy(100, 0.5, 1.0))]), (false, 2.0, false));
    assert_eq!(judged(vec![(OURS, busy(100, 0.8, 1.0))]), (false, 1.25, true));
    assert_eq!(judged(vec![(OURS, busy(100, 0.97, 1.0))]), (true, 1.03, true));
    // Beside a responder that does nothing and has CPU to spare: what it reached is what the load can do.
    assert_eq!(judged(vec![(OURS, busy(100, 0.5, 1.0)), (NULL, busy(180, 1.0, 0.5))]), (false, 1.8, false));
    assert_eq!(judged(vec![(OURS, busy(100, 0.4, 0.4)), (NULL, busy(110, 0.4, 0.4))]), (true, 1.1, true));
    // One that is busy itself hides what the load could do: twice as much, if it used half of its CPU.
    assert_eq!(judged(vec![(OURS, busy(100, 0.4, 1.0)), (NULL, busy(150, 0.5, 1.0))]), (false, 3.0, false));
}

#[test]
fn the_page_needs_nothing_from_elsewhere_and_says_its_charts_in_words() {
    let page = page(&report(), None);
    for word in ["<script", "http://", "https://", "@import", "url(", "src="] {
        assert!(!page.contains(word), "{word}");
    }
    let charts = page.matches("<svg ").count();
    assert!(charts >= 6, "{charts}");
    assert_eq!(page.matches("role=\"img\"").count(), charts);
    assert_eq!(page.matches("<desc id=").count(), charts);
    for open in ["<section", "<figure ", "<table", "<svg "] {
        let close = format!("</{}", open.trim_start_matches('<').trim_end_matches(['>', ' ']));
        assert_eq!(page.matches(open).count(), page.matches(&close).count(), "{open}");
    }
    let mut ids: Vec<&str> = page.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "no id is used twice");
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("@media print"));
}

#[test]
fn what_servers_and_loads_say_cannot_become_markup() {
    let mut report = report();
    report.rows[0].server = "<img onerror=x>".into();
    report.rows[1].error = Some("</table><script>".into());
    report.servers[0].version = "<b>".into();
    report.title = "</title><script>".into();
    let page = page(&report, None);
    assert!(!page.contains("<script>") && !page.contains("<img ") && !page.contains("<b>"));
}

#[test]
fn figures_have_three_digits_and_no_exponent() {
    for (value, expected) in
        [(0.0, "0"), (0.0123, "0.0123"), (0.136, "0.136"), (1.234, "1.23"), (14.61, "14.6"), (5672.4, "5672")]
    {
        assert_eq!(figure(value), expected);
    }
    assert_eq!(figure(1_234_567.0), "1\u{202f}234\u{202f}567");
    assert_eq!(
        (micros(850), micros(12_345), micros(1_500_000)),
        ("850 µs".into(), "12.3 ms".into(), "1.50 s".into())
    );
}

#[test]
fn dates_sort_as_they_are_written() {
    assert_eq!(utc(SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_865_400)), "2026-11-28 11:30:00 UTC");
}

#[test]
fn one_load_is_a_page_too_without_what_it_cannot_know() {
    let settings = |rtt: Option<&str>| rtt.map(|rtt| ("rtt".into(), rtt.into())).into_iter().collect();
    let of =
        |clients, megabytes, rtt| Point { clients, settings: settings(rtt), ..point("tftp", megabytes, 1.0) };
    let points = [
        vec![of(1, 100, None), of(1, 300, None), of(1, 200, None)],
        vec![of(64, 900, None)],
        vec![of(64, 80, Some("5ms"))],
        Vec::new(),
    ];
    let report = of_load(Conditions { rounds: 3, ..Conditions::here() }, &points);
    assert_eq!(report.rows.len(), 3);
    assert_eq!((report.rows[0].value, report.rows[0].rounds), (200.0, 3));
    assert_eq!((report.rows[0].cpu, report.rows[0].ratio), (None, None));
    let page = page(&report, None);
    for wanted in
        ["tftp under load", "Throughput against clients", "Time of one request", "900 MB/s", "TFTP rtt 5ms"]
    {
        assert!(page.contains(wanted), "{wanted}");
    }
    for unknown in ["Places", "Wire", "At a glance", "What it costs the server"] {
        assert!(!page.contains(unknown), "{unknown}");
    }
}
