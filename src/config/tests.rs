//! What is taken, what is refused, and with which words.

use super::*;

fn load_text(text: &str) -> Result<Loaded, Problems> {
    load(&Sources { file: Some(("bootstorm.toml".into(), text.into())), ..Sources::default() })
}

fn problems(text: &str) -> Vec<String> {
    load_text(text).expect_err("a mistake").0.iter().map(Problem::to_string).collect()
}

#[test]
fn nothing_at_all_is_a_plan_that_only_answers_safely() {
    let plan = load(&Sources::default()).unwrap().plan;
    assert_eq!(plan.dhcp.mode, DhcpMode::Proxy);
    assert_eq!((plan.dhcp.port, plan.dhcp.boot_server_port), (67, 4011));
    assert_eq!(plan.policy.menu_default, crate::jobs::script::MenuDefault::Local);
    assert_eq!(plan.images_dir, Path::new("/var/lib/bootstorm/images"));
    assert_eq!(plan.loaders.dirs.last().unwrap(), Path::new("/usr/lib/ipxe"));
}

#[test]
fn three_mistakes_are_named_at_once_with_line_and_key() {
    let text = "[server]\ndrivr = \"mio\"\n\n[dhcp]\nmode = \"half\"\n\n[tftp]\nmax_blksize = 7\n";
    assert_eq!(
        problems(text),
        [
            "bootstorm.toml:2: server.drivr: found an unknown key, expected a known key (did you mean driver?)",
            "bootstorm.toml:5: dhcp.mode: found \"half\", expected one of proxy, full, off",
            "bootstorm.toml:8: tftp.max_blksize: found 7, expected a whole number from 8 to 65464",
        ]
    );
}

#[test]
fn a_syntax_error_names_its_line_and_the_rest_is_still_checked() {
    let found = problems("[server\ncores = 1\n[dhcp]\nmode = \"half\"\n");
    assert!(found[0].starts_with("bootstorm.toml:1: found \"[server\", expected valid TOML"), "{found:?}");
    assert!(found.iter().any(|p| p.contains("dhcp.mode")), "{found:?}");
}

#[test]
fn the_example_has_every_key_at_its_default_and_loads() {
    let loaded = load_text(EXAMPLE).unwrap();
    let defaults = load(&Sources::default()).unwrap();
    assert_eq!(loaded.plan, defaults.plan);
    for (path, entry) in &loaded.effective {
        assert!(matches!(entry.origin, Origin::File { .. }), "{path} is not in the example");
    }
    // The commented part loads as well.
    let whole = EXAMPLE.replace("mode = \"proxy\" ", "mode = \"full\" ");
    let whole: String = whole
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.starts_with("[[") || rest.contains(" = ") => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let plan = load_text(&whole).unwrap().plan;
    assert_eq!(plan.dhcp.subnets.len(), 1);
    assert_eq!(plan.dhcp.subnets[0].domain.as_deref(), Some("lab.example"));
    assert_eq!(plan.dhcp.reservations.len(), 1);
}

#[test]
fn the_document_shows_the_example() {
    let text = include_str!("../../docs/CONFIG.md");
    assert!(text.contains(EXAMPLE.trim_end()), "docs/CONFIG.md must show `config example` to the letter");
}

#[test]
fn flags_beat_environment_beats_file_beats_default() {
    let mut sources = Sources {
        file: Some(("f".into(), "[server]\ncores = 1\ndriver = \"mio\"\ninterfaces = [\"a\"]\n".into())),
        environment: vec![
            ("BOOTSTORM_SERVER_CORES".into(), "2".into()),
            ("BOOTSTORM_SERVER_INTERFACES".into(), "b, c".into()),
            ("HOME".into(), "/root".into()),
        ],
        flags: vec![("server.cores", "--cores", Value::Integer(3))],
    };
    let loaded = load(&sources).unwrap();
    assert_eq!(loaded.plan.server.cores, 3);
    assert_eq!(loaded.plan.server.interfaces, ["b", "c"]);
    assert_eq!(loaded.plan.server.driver, Driver::Mio);
    let origin = |path: &str| loaded.effective.iter().find(|(p, _)| *p == path).unwrap().1.origin.to_string();
    assert_eq!(origin("server.cores"), "flag --cores");
    assert_eq!(origin("server.interfaces"), "environment BOOTSTORM_SERVER_INTERFACES");
    assert_eq!(origin("server.driver"), "f:3");
    assert_eq!(origin("tftp.listen"), "default");
    sources.environment.push(("BOOTSTORM_SERVER_CORS".into(), "2".into()));
    assert!(load(&sources).unwrap_err().to_string().contains("BOOTSTORM_SERVER_CORS"));
}

#[test]
fn what_cannot_work_together_is_refused() {
    for (text, wanted) in [
        ("[dhcp]\nmode = \"full\"\n", "dhcp.mode: found \"full\", expected at least one [[dhcp.subnet]]"),
        ("[[dhcp.subnet]]\nrange = \"10.0.0.1-10.0.0.2\"\n", "dhcp.subnet[1].network: found nothing"),
        ("[[dhcp.subnet]]\nnetwork = \"10.0.0.0/24\"\nrange = \"10.0.1.1-10.0.1.2\"\n", "inside 10.0.0.0/24"),
        (
            "[[dhcp.subnet]]\nnetwork = \"10.0.0.0/8\"\n[[dhcp.subnet]]\nnetwork = \"10.1.0.0/16\"\n",
            "dhcp.subnet[2].network",
        ),
        ("[[dhcp.reservation]]\nmac = \"x\"\nip = \"10.0.0.1\"\n", "dhcp.reservation[1].mac: found \"x\""),
        ("[dhcp.subnet]\nnetwork = \"10.0.0.0/8\"\n", "unknown key"),
        (
            "[[dhcp.subnet]]\nnetwork = \"10.0.0.0/8\"\nrnage = \"x\"\n",
            "dhcp.subnet[1].rnage: found an unknown key",
        ),
        ("[http]\nlisten = [\"0.0.0.0:80\", \"127.0.0.1:80\"]\n", "http.listen"),
        ("[http]\nlisten = [\"0.0.0.0:8081\"]\n", "admin.listen"),
        ("[http]\nlisten = [\"80\"]\n", "http.listen: found [\"80\"]"),
        ("[http]\ncongestion = \"cubic; rm\"\n", "http.congestion: found \"cubic; rm\", expected a name"),
        (
            "[https]\nlisten = [\"0.0.0.0:443\"]\n",
            "https.certificate: found \"\", expected a PEM file with its key",
        ),
        ("[https]\ncertificate = \"a.pem\"\n", "https.key: found \"\""),
        ("[https]\nkey = \"a.key\"\n", "https.certificate: found \"\""),
        ("[https]\ncertificate = \"a\"\nkey = \"b\"\nauto = true\n", "https.auto: found true"),
        ("[https]\nlisten = [\"0.0.0.0:4433\"]\nauto = true\n", "https.listen"),
        ("[https]\nlisten = [\"0.0.0.0:8081\"]\nauto = true\n", "admin.listen"),
        ("[policy]\nexclude = [\"52:*\", \"52*\"]\n", "policy.exclude: found [\"52:*\", \"52*\"]"),
        ("[policy]\nmenu_timeout = 15\n", "policy.menu_timeout: found 15"),
        ("[tftp]\nlisten = [\"0.0.0.0:67\"]\n", "tftp.listen"),
        ("[tftp]\nlisten = [\"0.0.0.0:68\"]\n", "tftp.listen"),
        ("[dhcp]\nport = 68\n", "dhcp.port: found 68"),
        ("[dhcp]\nboot_server_port = 68\n", "dhcp.boot_server_port: found 68"),
        (
            "[policy]\nmenu_timeout = \"15\"\n",
            "policy.menu_timeout: found \"15\", expected a time with its unit",
        ),
        ("[admin]\nexpect_within = \"30\"\n", "admin.expect_within: found \"30\""),
        (
            "[[dhcp.subnet]]\nnetwork = \"10.0.0.0/24\"\nlease = \"3600\"\n",
            "dhcp.subnet[1].lease: found \"3600\"",
        ),
        (
            "[[dhcp.subnet]]\nnetwork = \"10.0.0.0/24\"\ndomain = \"a b\"\n",
            "dhcp.subnet[1].domain: found \"a b\"",
        ),
        ("[[dhcp.subnet]]\nnetwork = \"10.0.0.0/24\"\nloader = \"../x\"\n", "dhcp.subnet[1].loader: found"),
        ("[loaders]\nuefi_x64 = [\"../../x\", \"\"]\n", "bootstorm.toml:2: loaders.uefi_x64: found"),
        ("[loaders]\nwimboot = [\"\"]\n", "loaders.wimboot: found"),
        ("[server]\ninterfaces = [\"a/b\", \"\"]\n", "server.interfaces: found"),
        ("[dhcp]\nport = 65000\n", "dhcp.port: found 65000, expected a port up to 61591"),
        ("wrong = 1\n", "wrong: found an unknown key"),
        ("[wrong]\n", "bootstorm.toml:1: wrong: found an unknown key, expected a known table"),
        ("[dhcp.wrong]\n[dhcp]\n", "dhcp.wrong: found an unknown key"),
        (
            "[dhcp]\nsubnet = \"10.0.0.0/8\"\n",
            "dhcp.subnet: found an unknown key, expected tables, each headed [[",
        ),
        ("[dhcp]\nreservation = []\n", "expected tables, each headed [[dhcp.reservation]]"),
        ("[[dhcp.subnet]]\nnetwork = \"10.0.0.7/24\"\n", "the one of this address is 10.0.0.0/24"),
        (
            "[[dhcp.reservation]]\nmac = \"ff:ff:ff:ff:ff:ff\"\nip = \"10.0.0.1\"\n",
            "one machine's MAC address",
        ),
        (
            "[[dhcp.subnet]]\nnetwork = \"10.0.0.0/24\"\n[[dhcp.reservation]]\nmac = \"52:54:00:00:00:01\"\n\
             ip = \"10.0.0.255\"\n",
            "dhcp.reservation[1].ip: found \"10.0.0.255\"",
        ),
    ] {
        let found = problems(text);
        assert!(found.iter().any(|p| p.contains(wanted)), "{text:?}: {found:?}");
    }
}

#[test]
fn a_range_in_proxy_mode_is_a_note() {
    let plan = load_text("[[dhcp.subnet]]\nnetwork = \"10.0.0.0/24\"\nrange = \"10.0.0.5-10.0.0.9\"\n")
        .unwrap()
        .plan;
    assert_eq!(plan.dhcp.subnets[0].range, None);
    assert!(plan.notes[0].contains("ignored in proxy mode"), "{:?}", plan.notes);
}

#[test]
fn what_is_odd_and_may_be_meant_is_a_warning() {
    const FULL: &str = "[dhcp]\nmode = \"full\"\n[[dhcp.subnet]]\nnetwork = \"10.0.0.0/24\"\n";
    const RESERVED: &str = "[[dhcp.reservation]]\nmac = \"52:54:00:00:00:01\"\nip = ";
    for (text, wanted) in [
        (FULL.to_owned(), "10.0.0.0/24 has no range and no reservation"),
        (
            format!("{FULL}range = \"10.0.0.9-10.0.0.255\"\n"),
            "range has 10.0.0.255 in it, an end of the network",
        ),
        (
            format!("{FULL}router = \"10.0.0.9\"\nrange = \"10.0.0.1-10.0.0.20\"\n"),
            "range has 10.0.0.9 in it, which a router or server has",
        ),
        (format!("{RESERVED}\"10.9.0.1\"\n"), "dhcp.reservation[1].ip 10.9.0.1 is inside no [[dhcp.subnet]]"),
        (format!("{RESERVED}\"10.9.0.1\"\n"), "in proxy mode another server gives the addresses"),
    ] {
        let warnings = load_text(&text).unwrap().plan.warnings;
        assert!(warnings.iter().any(|warning| warning.contains(wanted)), "{text:?}: {warnings:?}");
    }
    let quiet = format!("{FULL}{RESERVED}\"10.0.0.50\"\n");
    assert_eq!(load_text(&quiet).unwrap().plan.warnings, Vec::<String>::new());
    let quiet = format!("{FULL}router = \"10.0.0.1\"\nrange = \"10.0.0.100-10.0.0.200\"\n");
    assert_eq!(load_text(&quiet).unwrap().plan.warnings, Vec::<String>::new());
}

#[test]
fn the_boot_servers_port_is_3944_above_or_as_given() {
    let ports = |text: &str| {
        let dhcp = load_text(text).unwrap().plan.dhcp;
        (dhcp.port, dhcp.boot_server_port)
    };
    assert_eq!(ports(""), (67, 4011));
    assert_eq!(ports("[dhcp]\nport = 61591\n"), (61591, 65535));
    assert_eq!(ports("[dhcp]\nport = 65000\nboot_server_port = 65001\n"), (65000, 65001));
}

#[test]
fn a_file_that_cannot_be_read_is_named_without_a_line() {
    let text = read_file(Path::new("/nonexistent/b.toml")).unwrap_err().to_string();
    assert!(text.starts_with("/nonexistent/b.toml: found no such file, expected"), "{text}");
}

#[test]
fn tables_of_ours_may_be_empty() {
    load_text("[server]\n[dhcp]\n[tftp]\n[admin]\n").unwrap();
}
