//! A certificate as iPXE judges it, which is not as browsers do.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::pem::Pem;
use x509_parser::prelude::{GeneralName, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::Finding;

/// iPXE takes certificates this long before and after their time (x509.h, TIMESTAMP_ERROR_MARGIN).
const MARGIN: Duration = Duration::from_secs(12 * 3600 + 1800);
/// Said beforehand.
const SOON: Duration = Duration::from_secs(30 * 86_400);

/// Judges the first certificate of a PEM file. `addresses`: those that clients reach the server at; empty asks nothing
/// of names. `file`: as it is shown.
pub fn check(file: &str, pem: &[u8], addresses: &[IpAddr], now: SystemTime) -> Vec<Finding> {
    let unreadable = |why: String| {
        vec![Finding::wrong(
            "certificate-unreadable",
            format!("{file}: {why}"),
            "the file is no PEM certificate",
            format!("openssl x509 -in {file} -noout -text"),
        )]
    };
    let first =
        Pem::iter_from_buffer(pem).find(|pem| pem.as_ref().is_ok_and(|pem| pem.label == "CERTIFICATE"));
    let pem = match first {
        Some(Ok(pem)) => pem,
        Some(Err(error)) => return unreadable(error.to_string()),
        None => return unreadable("there is no CERTIFICATE in it".into()),
    };
    match pem.parse_x509() {
        Ok(certificate) => judge(file, &certificate, addresses, now),
        Err(error) => unreadable(error.to_string()),
    }
}

fn judge(
    file: &str,
    certificate: &X509Certificate<'_>,
    addresses: &[IpAddr],
    now: SystemTime,
) -> Vec<Finding> {
    let mut found = Vec::new();
    let at = |unix: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap_or(0));
    let validity = certificate.validity();
    let (from, to) = (at(validity.not_before.timestamp()), at(validity.not_after.timestamp()));
    let renew = "renew it, and point [https] certificate and key at the new files";
    if now > to + MARGIN {
        found.push(Finding::wrong(
            "expired-certificate",
            format!("{file} was valid until {}", date(to)),
            "machines that fetch by HTTPS refuse it",
            renew,
        ));
    } else if now + SOON > to {
        found.push(Finding::note(
            "certificate-expires",
            format!("{file} is valid until {} only", date(to)),
            renew,
        ));
    }
    if now + MARGIN < from {
        found.push(Finding::wrong(
            "certificate-not-yet",
            format!("{file} is valid from {} on", date(from)),
            "the clock of this host, or of the one that made it, is wrong",
            "timedatectl; then make it again",
        ));
    }
    match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(_)) => {}
        _ => found.push(Finding::note(
            "certificate-not-rsa",
            format!("{file} has no RSA key, which iPXE of before December 2025 cannot check"),
            "use an RSA key of 2048 bits or more, or plain http for machines with an older iPXE",
        )),
    }
    let names: Vec<&GeneralName<'_>> = certificate
        .subject_alternative_name()
        .ok()
        .flatten()
        .map(|names| names.value.general_names.iter().collect())
        .unwrap_or_default();
    let has = |address: &IpAddr| {
        let wanted = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        names.iter().any(|name| matches!(name, GeneralName::IPAddress(bytes) if *bytes == wanted.as_slice()))
            || certificate
                .subject()
                .iter_common_name()
                .any(|name| name.as_str().is_ok_and(|name| name == address.to_string()))
    };
    if !addresses.is_empty() && !addresses.iter().any(has) {
        let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        found.push(Finding::wrong(
            "certificate-name",
            format!("{file} names none of this server's addresses ({})", list.join(", ")),
            "machines are given URLs with an address, and compare it with the certificate's names",
            "make one with subjectAltName = IP:ADDRESS",
        ));
    }
    found
}

fn date(at: SystemTime) -> String {
    // A date of HTTP (`Sun, 06 Nov 1994 08:49:37 GMT`) without its weekday, time and zone.
    let text = httpdate::fmt_http_date(at);
    text.get(5..16).unwrap_or(&text).to_owned()
}
