//! What the engine counts, and under which names `/metrics` shows it.

use std::sync::{Arc, LazyLock};

use crate::proto::{dhcp, tftp};
use crate::telemetry::{Counters, Metric};
use crate::wire::http::RefuseReason;

macro_rules! counts {
    ($($(#[$gauge:ident])? $variant:ident => $name:literal $({$label:literal = $word:literal})?, $help:literal;)*) => {
        /// A plain counter or gauge. Metrics of one name stand side by side.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        #[allow(missing_docs, reason = "the help text beside each name is its documentation")]
        pub enum Count { $($variant),* }

        const PLAIN: &[Metric] = &[$(Metric {
            name: concat!("bootstorm_", $name),
            help: $help,
            label: counts!(@label $($label $word)?),
            gauge: counts!(@gauge $($gauge)?),
        }),*];
    };
    (@label) => { None };
    (@label $label:literal $word:literal) => { Some(($label, $word)) };
    (@gauge) => { false };
    (@gauge gauge) => { true };
}

counts! {
    LoopTurns => "loop_turns_total", "Times the loops of all cores went round.";
    DhcpPackets => "dhcp_packets_total", "DHCP messages received, by raw socket and UDP.";
    DhcpReplies => "dhcp_replies_total", "DHCP messages sent.";
    DhcpMalformedFrames => "dhcp_malformed_frames_total", "Frames on the raw socket that are no whole UDP datagram, relayed ones with a wrong checksum.";
    DhcpSendErrors => "dhcp_send_errors_total", "DHCP replies the kernel would not send.";
    DhcpRecvErrors => "dhcp_receive_errors_total", "Errors on DHCP sockets, as strangers can provoke.";
    DhcpUnrecorded => "dhcp_unrecorded_total", "Offers the flight recorder was not told of, because there were too many.";
    DhcpWaited => "dhcp_waited_total", "DISCOVERs that waited while exchanges under way were answered first.";
    DhcpOtherServers => "dhcp_other_servers_total", "Other servers heard to answer machines that boot, each once a day.";
    DhcpRestarting => "dhcp_restarting_total", "Machines whose firmware started five times in a quarter of an hour.";
    DhcpLateFirst => "dhcp_late_first_total", "Machines whose first messages nobody heard: a switch port not forwarding yet.";
    DhcpNextLoader => "dhcp_next_loader_total", "Machines that came back without having reached their script, and get the next loader where there is one.";
    DhcpProbes => "dhcp_probes_total", "Addresses asked for on the wire before they were offered first.";
    DhcpInUse => "dhcp_in_use_total", "Addresses found in use without a lease, and put aside for ten minutes.";
    DhcpDisbelieved => "dhcp_disbelieved_total", "Answers for addresses asked for that were not believed: too many.";
    #[gauge] DhcpPoolAddresses => "dhcp_pool_addresses", "Addresses of all pools.";
    #[gauge] DhcpPoolTaken => "dhcp_pool_taken", "Addresses of all pools offered, given or in quarantine.";
    #[gauge] DhcpPoolsLow => "dhcp_pools_low", "Pools with nine tenths of their addresses taken.";
    DhcpForeignInterface => "dhcp_foreign_interface_total", "DHCP messages on interfaces this server does not answer on.";
    TftpRequests => "tftp_requests_total", "TFTP requests.";
    TftpRefused => "tftp_refused_total", "TFTP requests answered with an error.";
    TftpShed => "tftp_shed_total", "TFTP requests dropped because the transfer table is full or the server stops, and transfers ended to make room or because their port was guessed at.";
    TftpComplete => "tftp_transfers_total" {"outcome" = "complete"}, "TFTP transfers ended, by outcome.";
    TftpProbed => "tftp_transfers_total" {"outcome" = "size-query"}, "TFTP transfers ended, by outcome.";
    TftpClientError => "tftp_transfers_total" {"outcome" = "client-error"}, "TFTP transfers ended, by outcome.";
    TftpTimedOut => "tftp_transfers_total" {"outcome" = "timed-out"}, "TFTP transfers ended, by outcome.";
    TftpReplaced => "tftp_transfers_total" {"outcome" = "cut"}, "TFTP transfers ended, by outcome.";
    #[gauge] TftpTransfers => "tftp_transfers_running", "TFTP transfers under way.";
    TftpBytes => "tftp_bytes_total", "File bytes sent by TFTP, resends included.";
    TftpBlocks => "tftp_blocks_total", "DATA packets sent, resends included.";
    TftpByFrame => "tftp_sent_total" {"way" = "frame"}, "DATA packets of files sent, by the way they left.";
    TftpBySegments => "tftp_sent_total" {"way" = "segments"}, "DATA packets of files sent, by the way they left.";
    TftpByDatagram => "tftp_sent_total" {"way" = "datagram"}, "DATA packets of files sent, by the way they left.";
    HttpCold => "http_cold_waits_total", "Times a download began to wait because its next bytes were not in memory.";
    TftpCold => "tftp_cold_waits_total", "Looks at transfers whose next blocks were not in memory, and netascii requests dropped for that.";
    TftpQueued => "tftp_turns_total", "Times a transfer had more to send than its share of one turn.";
    TftpResends => "tftp_resends_total", "Windows, last blocks and OACKs sent again, counted when their transfer ends.";
    TftpFragmentsLost => "tftp_fragments_lost_total", "Machines given smaller blocks because fragments did not reach them.";
    TftpMalformed => "tftp_malformed_total", "Datagrams that are no TFTP packet.";
    TftpUnexpected => "tftp_unexpected_total", "TFTP packets a server has no use for.";
    TftpUnknownTid => "tftp_unknown_tid_total", "TFTP packets that belong to no transfer.";
    TftpRecvErrors => "tftp_receive_errors_total", "Errors on TFTP sockets, as strangers can provoke.";
    TftpSendErrors => "tftp_send_errors_total", "TFTP packets the kernel would not send.";
    HttpConnections => "http_connections_total", "HTTP connections accepted.";
    HttpShed => "http_shed_total", "HTTP connections closed at once because the table is full.";
    #[gauge] HttpOpen => "http_connections_open", "HTTP connections open.";
    HttpRequests => "http_requests_total", "HTTP requests answered.";
    Http2xx => "http_answers_total" {"class" = "2xx"}, "HTTP answers, by class of status.";
    Http3xx => "http_answers_total" {"class" = "3xx"}, "HTTP answers, by class of status.";
    Http4xx => "http_answers_total" {"class" = "4xx"}, "HTTP answers, by class of status.";
    Http5xx => "http_answers_total" {"class" = "5xx"}, "HTTP answers, by class of status.";
    HttpScripts => "http_scripts_total", "iPXE scripts given.";
    HttpAborted => "http_aborted_total", "HTTP responses whose receiver went away.";
    HttpTimedOut => "http_timed_out_total", "HTTP connections closed because nothing moved for too long.";
    HttpText => "http_bytes_total" {"sender" = "send"}, "HTTP bytes handed to the kernel, by sender.";
    HttpSplice => "http_bytes_total" {"sender" = "splice"}, "HTTP bytes handed to the kernel, by sender.";
    HttpSendfile => "http_bytes_total" {"sender" = "sendfile"}, "HTTP bytes handed to the kernel, by sender.";
    HttpRing => "http_bytes_total" {"sender" = "send_zc"}, "HTTP bytes handed to the kernel, by sender.";
    HttpMapped => "http_bytes_total" {"sender" = "msg_zerocopy"}, "HTTP bytes handed to the kernel, by sender.";
    HttpSealed => "http_bytes_total" {"sender" = "tls"}, "HTTP bytes handed to the kernel, by sender.";
    HttpsHandshakes12 => "https_handshakes_total" {"outcome" = "tls-1.2"}, "TLS handshakes ended, by outcome.";
    HttpsHandshakes13 => "https_handshakes_total" {"outcome" = "tls-1.3"}, "TLS handshakes ended, by outcome.";
    HttpsNotTls => "https_handshakes_total" {"outcome" = "not-tls"}, "TLS handshakes ended, by outcome.";
    HttpsIncompatible => "https_handshakes_total" {"outcome" = "incompatible"}, "TLS handshakes ended, by outcome.";
    HttpsAlerts => "https_handshakes_total" {"outcome" = "peer-alert"}, "TLS handshakes ended, by outcome.";
    HttpsBroken => "https_handshakes_total" {"outcome" = "broken"}, "TLS handshakes ended, by outcome.";
    ScriptsQueued => "admission_waits_total", "Scripts asked for by machines that others come before.";
    BadTokens => "http_bad_tokens_total", "Boot URLs whose token is forged or expired.";
    TokensShut => "http_tokens_shut_total", "Boot URLs whose token does not open what was asked for.";
    AnswersWithheld => "http_answers_withheld_total", "Answer files asked for and not given.";
    OpenFailures => "file_open_failures_total", "Listed files that could not be opened.";
    FilesChanged => "files_changed_total", "Transfers cut because their file changed in place or could not be read.";
}

/// Every metric, in cell order: the plain ones, then one family per list of reasons.
static METRICS: LazyLock<Vec<Metric>> = LazyLock::new(|| {
    let family = |name, help, word| Metric { name, help, label: Some(("reason", word)), gauge: false };
    let mut all = PLAIN.to_vec();
    all.extend(dhcp::DropReason::ALL.iter().map(|reason| {
        family(
            "bootstorm_dhcp_drops_total",
            "DHCP messages left without an answer, by reason.",
            reason.word(),
        )
    }));
    all.extend(tftp::DropReason::ALL.iter().map(|reason| {
        family("bootstorm_tftp_ignored_total", "TFTP packets a transfer ignored, by reason.", reason.word())
    }));
    all.extend(RefuseReason::ALL.iter().map(|reason| {
        family(
            "bootstorm_http_refused_total",
            "HTTP requests refused for their form, by reason.",
            reason.word(),
        )
    }));
    all
});

/// One core's counters, by name.
#[derive(Clone, Debug)]
pub struct Tally {
    cells: Arc<Counters>,
}

impl Default for Tally {
    fn default() -> Self {
        Self { cells: Arc::new(Counters::new(METRICS.len())) }
    }
}

/// The position of a reason in its list.
fn position<T: PartialEq>(all: &[T], reason: &T) -> usize {
    all.iter().position(|r| r == reason).unwrap_or(0)
}

impl Tally {
    /// Adds to a counter.
    pub fn add(&self, count: Count, amount: u64) {
        self.cells.add(count as usize, amount);
    }

    /// Sets a gauge.
    pub fn set(&self, count: Count, value: u64) {
        self.cells.set(count as usize, value);
    }

    /// A DHCP message got no answer.
    pub fn drop_dhcp(&self, reason: dhcp::DropReason) {
        self.drop_dhcp_many(reason, 1);
    }

    /// So many DHCP messages got no answer.
    pub fn drop_dhcp_many(&self, reason: dhcp::DropReason, count: u64) {
        self.cells.add(PLAIN.len() + position(dhcp::DropReason::ALL, &reason), count);
    }

    /// A transfer ignored a packet.
    pub fn drop_tftp(&self, reason: tftp::DropReason) {
        self.cells
            .add(PLAIN.len() + dhcp::DropReason::ALL.len() + position(tftp::DropReason::ALL, &reason), 1);
    }

    /// A request was refused for its form.
    pub fn refuse_http(&self, reason: RefuseReason) {
        let before = PLAIN.len() + dhcp::DropReason::ALL.len() + tftp::DropReason::ALL.len();
        self.cells.add(before + position(&RefuseReason::ALL, &reason), 1);
    }

    /// A transfer ended; `None` when it was cut by us or replaced.
    pub fn tftp_outcome(&self, outcome: Option<tftp::Outcome>) {
        use tftp::Outcome;
        self.add(
            match outcome {
                Some(Outcome::Complete) => Count::TftpComplete,
                Some(Outcome::ProbeAborted) => Count::TftpProbed,
                Some(Outcome::ClientError(_)) => Count::TftpClientError,
                Some(Outcome::TimedOut) => Count::TftpTimedOut,
                None => Count::TftpReplaced,
            },
            1,
        );
    }

    /// The cells, for reading.
    pub fn cells(&self) -> Arc<Counters> {
        Arc::clone(&self.cells)
    }
}

/// The Prometheus text of all cores.
pub fn render(cores: &[Arc<Counters>]) -> String {
    let mut out = String::with_capacity(16 * 1024);
    crate::telemetry::render(&METRICS, cores, &mut out);
    out
}
