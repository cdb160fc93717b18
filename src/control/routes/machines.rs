//! Machines: what is known of them, and what operators say.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::IntoParams;

use super::super::Admin;
use super::super::auth::{Administrator, Caller, Operator, Reader};
use super::super::problem::Problem;
use super::{Answer, Asked, Named, Text, document_of, expected, located, page_of, read_body, tagged};
use crate::jobs::book::{Book, MachineSpec, Refusal};
use crate::jobs::machine::{Ident, Machine, MachineId, MachineState};
use crate::keeper::{Done, Order};

/// Longest name of a machine or a group, bytes.
const NAME_MAX: usize = 128;
/// Identities and groups of one order.
const LIST_MAX: usize = 32;

/// Which machines.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct MachineQuery {
    /// known, pending, approved or rejected.
    #[param(pattern = "^(known|pending|approved|rejected)$")]
    state: Option<String>,
    /// Only machines of this group.
    group: Option<String>,
    /// The id after which the page begins: `next` of the page before.
    #[param(pattern = "^m[0-9]{1,18}$")]
    after: Option<String>,
    /// Machines at most, 1 to 1000 (100 unless told).
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// As answers show it: numbers as `m17`, and what is said of the whole.
fn shown(machine: &Machine) -> Result<Value, Problem> {
    let mut value = document_of(machine)?;
    value["id"] = json!(machine.id.to_string());
    value["state"] = json!(machine.state());
    if let Some(parts) = value["parts"].as_array_mut() {
        for (part, own) in parts.iter_mut().zip(&machine.parts) {
            part["id"] = json!(own.id.to_string());
        }
    }
    Ok(value)
}

/// A machine as it is named in a path: its number, one of its identities, or its name where only one has it.
fn find<'b>(book: &'b Book, text: &str) -> Option<&'b Arc<Machine>> {
    if let Ok(id) = text.parse::<MachineId>() {
        return book.machine(id);
    }
    let ident = match (text.parse(), text.parse()) {
        (Ok(mac), _) => Some(Ident::Mac(mac)),
        (_, Ok(uuid)) => Some(Ident::Uuid(uuid)),
        _ => None,
    };
    match ident {
        Some(ident) => book.machine_with(&ident),
        None => {
            let shown = [Ident::Serial, Ident::Asset];
            shown.iter().find_map(|of| book.machine_with(&of(text.trim().to_owned()))).or_else(|| {
                let mut called = book.machines_called(text.trim());
                called.next().filter(|_| called.next().is_none())
            })
        }
    }
}

async fn machine(admin: &Admin, named: String) -> Result<Arc<Machine>, Problem> {
    let text = named.clone();
    let found = admin.look(move |book, _| find(book, &text).cloned()).await?;
    found.ok_or_else(|| Refusal::NoMachine { named }.into())
}

fn one(done: Done) -> Result<Arc<Machine>, Problem> {
    match done {
        Done::Machine(machine) => Ok(machine),
        Done::Jobs(_) | Done::Nothing => Err(Problem::busy()),
    }
}

fn checked(spec: MachineSpec) -> Result<MachineSpec, Problem> {
    let long = |text: &str| text.len() > NAME_MAX || text.chars().any(char::is_control);
    if spec.name.as_deref().is_some_and(long) {
        return Err(Problem::bad(
            "not-a-name",
            format!("a name is up to {NAME_MAX} bytes, without control characters"),
        ));
    }
    if spec.loader.as_deref().is_some_and(long) {
        return Err(Problem::bad(
            "not-a-loader",
            format!("a loader's name is up to {NAME_MAX} bytes, without control characters"),
        ));
    }
    let groups = spec.groups.iter().flatten();
    if groups.clone().count() > LIST_MAX || groups.clone().any(|group| group.trim().is_empty() || long(group))
    {
        let detail = format!("up to {LIST_MAX} groups, of 1 to {NAME_MAX} bytes, without control characters");
        return Err(Problem::bad("not-a-group", detail));
    }
    let text_of = |ident: &Ident| match ident {
        Ident::Serial(text) | Ident::Asset(text) => long(text),
        Ident::Mac(_) | Ident::Uuid(_) => false,
    };
    if spec.idents.len() > LIST_MAX || spec.idents.iter().any(text_of) {
        let detail = format!("up to {LIST_MAX} identities, of up to {NAME_MAX} bytes");
        return Err(Problem::bad("not-an-identity", detail));
    }
    let trimmed = spec.idents.into_iter().map(|ident| match ident {
        Ident::Serial(text) => Ident::Serial(text.trim().to_owned()),
        Ident::Asset(text) => Ident::Asset(text.trim().to_owned()),
        other => other,
    });
    Ok(MachineSpec { idents: trimmed.collect(), ..spec })
}

/// List machines on record, a page at a time.
#[utoipa::path(
    get, path = "/v1/machines", tag = "machines", params(MachineQuery),
    responses((status = 200, description = "A page of machines", body = ref("#/components/schemas/MachinePage"))),
    security(("token" = ["read"]))
)]
pub(super) async fn list(
    _: Reader,
    State(admin): State<Arc<Admin>>,
    Asked(query): Asked<MachineQuery>,
) -> Answer {
    let limit = page_of(query.limit)?;
    let not_an_id =
        |text: &str| Problem::bad("not-a-machine", format!("{text:?} is no machine's number such as m17"));
    let after =
        query.after.map(|text| text.parse::<MachineId>().map_err(|_| not_an_id(&text))).transpose()?;
    let state = query.state.map(|word| {
        [MachineState::Known, MachineState::Pending, MachineState::Approved, MachineState::Rejected]
            .into_iter()
            .find(|state| state.word() == word)
            .ok_or_else(|| {
                Problem::bad(
                    "not-a-state",
                    format!("{word:?}: expected known, pending, approved or rejected"),
                )
            })
    });
    let state = state.transpose()?;
    let group = query.group;
    let mut machines: Vec<Arc<Machine>> = admin
        .look(move |book, _| {
            let in_group = |machine: &Machine| {
                group.as_deref().is_none_or(|group| {
                    machine.parts.iter().any(|part| part.groups.iter().any(|own| **own == *group))
                })
            };
            book.machines()
                .filter(|machine| after.is_none_or(|after| machine.id > after))
                .filter(|machine| state.is_none_or(|state| machine.state() == state) && in_group(machine))
                .take(limit + 1)
                .cloned()
                .collect()
        })
        .await?;
    let more = machines.len() > limit;
    machines.truncate(limit);
    let next = machines.last().filter(|_| more).map(|machine| machine.id.to_string());
    let rows: Result<Vec<Value>, Problem> = machines.iter().map(|machine| shown(machine)).collect();
    Ok(Json(json!({ "machines": rows?, "next": next })))
}

/// Register a machine, or say more of one that was seen.
#[utoipa::path(
    post, path = "/v1/machines", tag = "machines",
    params(("Idempotency-Key" = Option<String>, Header, description = "Repeats of this order get the first answer")),
    request_body(content = ref("#/components/schemas/MachineSpec"), content_type = "application/json"),
    responses((status = 201, description = "The machine", body = ref("#/components/schemas/Machine"))),
    security(("token" = ["operate"]))
)]
pub(super) async fn register(
    Operator(by): Operator,
    State(admin): State<Arc<Admin>>,
    Text(body): Text,
) -> Result<Response, Problem> {
    let spec = checked(read_body(&body, "not-a-machine")?)?;
    let machine = one(admin.order(Order::Register(spec), &by).await?)?;
    let path = format!("/v1/machines/{}", machine.id);
    Ok(located(tagged(StatusCode::CREATED, shown(&machine)?, machine.generation), &path))
}

/// Show a machine.
#[utoipa::path(
    get, path = "/v1/machines/{id}", tag = "machines",
    params(("id" = String, Path, description = "m17, or a MAC address, UUID, serial, asset tag or name")),
    responses((
        status = 200, description = "The machine; its generation is the ETag",
        body = ref("#/components/schemas/Machine")
    )),
    security(("token" = ["read"]))
)]
pub(super) async fn show(
    _: Reader,
    State(admin): State<Arc<Admin>>,
    Named(named): Named<String>,
) -> Result<Response, Problem> {
    let machine = machine(&admin, named).await?;
    Ok(tagged(StatusCode::OK, shown(&machine)?, machine.generation))
}

async fn change(
    admin: &Admin,
    by: &Caller,
    headers: &HeaderMap,
    named: String,
    spec: MachineSpec,
) -> Result<Response, Problem> {
    let expected = expected(headers)?;
    let id = machine(admin, named).await?.id;
    let machine = one(admin.order(Order::SetMachine { id, expected, spec }, by).await?)?;
    Ok(tagged(StatusCode::OK, shown(&machine)?, machine.generation))
}

/// Change what is given of a machine: name, groups, loader, state, further identities.
#[utoipa::path(
    patch, path = "/v1/machines/{id}", tag = "machines",
    params(
        ("id" = String, Path, description = "m17, or a MAC address, UUID, serial, asset tag or name"),
        ("If-Match" = Option<String>, Header, description = "Only if the machine still has this ETag")
    ),
    request_body(content = ref("#/components/schemas/MachineSpec"), content_type = "application/json"),
    responses((status = 200, description = "The machine", body = ref("#/components/schemas/Machine"))),
    security(("token" = ["operate"]))
)]
pub(super) async fn set(
    Operator(by): Operator,
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    Named(named): Named<String>,
    Text(body): Text,
) -> Result<Response, Problem> {
    let spec = checked(read_body(&body, "not-a-machine")?)?;
    change(&admin, &by, &headers, named, spec).await
}

/// Let a machine in that waits for approval.
#[utoipa::path(
    post, path = "/v1/machines/{id}/approve", tag = "machines",
    params(
        ("id" = String, Path, description = "m17, or a MAC address, UUID, serial, asset tag or name"),
        ("If-Match" = Option<String>, Header, description = "Only if the machine still has this ETag")
    ),
    responses((status = 200, description = "The machine, approved", body = ref("#/components/schemas/Machine"))),
    security(("token" = ["operate"]))
)]
pub(super) async fn approve(
    Operator(by): Operator,
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    Named(named): Named<String>,
) -> Result<Response, Problem> {
    let spec = MachineSpec { state: Some(MachineState::Approved), ..MachineSpec::default() };
    change(&admin, &by, &headers, named, spec).await
}

/// Refuse a machine: no loader, no script, no job, through any of its identities.
#[utoipa::path(
    post, path = "/v1/machines/{id}/reject", tag = "machines",
    params(
        ("id" = String, Path, description = "m17, or a MAC address, UUID, serial, asset tag or name"),
        ("If-Match" = Option<String>, Header, description = "Only if the machine still has this ETag")
    ),
    responses((status = 200, description = "The machine, rejected", body = ref("#/components/schemas/Machine"))),
    security(("token" = ["operate"]))
)]
pub(super) async fn reject(
    Operator(by): Operator,
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    Named(named): Named<String>,
) -> Result<Response, Problem> {
    let spec = MachineSpec { state: Some(MachineState::Rejected), ..MachineSpec::default() };
    change(&admin, &by, &headers, named, spec).await
}

/// Forget a machine. Jobs stay, and what they denied stays denied; a rejection is forgotten with it.
#[utoipa::path(
    delete, path = "/v1/machines/{id}", tag = "machines",
    params(
        ("id" = String, Path, description = "m17, or a MAC address, UUID, serial, asset tag or name"),
        ("If-Match" = Option<String>, Header, description = "Only if the machine still has this ETag")
    ),
    responses((status = 204, description = "Forgotten")),
    security(("token" = ["admin"]))
)]
pub(super) async fn forget(
    Administrator(by): Administrator,
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    Named(named): Named<String>,
) -> Result<StatusCode, Problem> {
    let expected = expected(&headers)?;
    let id = machine(&admin, named).await?.id;
    admin.order(Order::ForgetMachine { id, expected }, &by).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Which machine becomes a part of this one, and why.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Merge {
    other: String,
    #[serde(default)]
    why: String,
}

/// Make two machines one. Merging only takes away: it never gives a machine a boot it would not have had.
#[utoipa::path(
    post, path = "/v1/machines/{id}/merge", tag = "machines",
    params(("id" = String, Path, description = "m17, or a MAC address, UUID, serial, asset tag or name")),
    request_body(content = ref("#/components/schemas/Merge"), content_type = "application/json"),
    responses((status = 200, description = "The one machine", body = ref("#/components/schemas/Machine"))),
    security(("token" = ["admin"]))
)]
pub(super) async fn merge(
    Administrator(by): Administrator,
    State(admin): State<Arc<Admin>>,
    Named(named): Named<String>,
    Text(body): Text,
) -> Result<Response, Problem> {
    let wish: Merge = read_body(&body, "not-a-merge")?;
    if wish.why.len() > NAME_MAX {
        return Err(Problem::bad("not-a-merge", format!("why: up to {NAME_MAX} bytes")));
    }
    let (id, other) = (machine(&admin, named).await?.id, machine(&admin, wish.other).await?.id);
    let why = if wish.why.is_empty() { "an operator said so".into() } else { wish.why };
    let machine = one(admin.order(Order::Merge { id, other, why }, &by).await?)?;
    Ok(tagged(StatusCode::OK, shown(&machine)?, machine.generation))
}

/// Which part leaves.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Split {
    part: String,
}

/// Take a merged part out again, as the machine it was.
#[utoipa::path(
    post, path = "/v1/machines/{id}/split", tag = "machines",
    params(("id" = String, Path, description = "m17, or a MAC address, UUID, serial, asset tag or name")),
    request_body(content = ref("#/components/schemas/Split"), content_type = "application/json"),
    responses((status = 200, description = "The machine that left", body = ref("#/components/schemas/Machine"))),
    security(("token" = ["admin"]))
)]
pub(super) async fn split(
    Administrator(by): Administrator,
    State(admin): State<Arc<Admin>>,
    Named(named): Named<String>,
    Text(body): Text,
) -> Result<Response, Problem> {
    let wish: Split = read_body(&body, "not-a-split")?;
    let part: MachineId = wish.part.parse().map_err(|_| {
        Problem::bad("not-a-machine", format!("part {:?}: expected a number such as m18", wish.part))
    })?;
    let id = machine(&admin, named).await?.id;
    let machine = one(admin.order(Order::Split { id, part }, &by).await?)?;
    Ok(tagged(StatusCode::OK, shown(&machine)?, machine.generation))
}
