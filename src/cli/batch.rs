//! Batch forms of the crypto commands: JSON lines in, JSON lines out.
//!
//! A line is the proto JSON of the request with an optional `reference` beside its fields; `key`, `tenant`
//! and `aad` come from the command line where a line has none. Bytes are base64. The answer lines are the
//! proto JSON of the results, in order. One bad item never fails the others; it decides the exit code.

use std::path::Path;

use prost_reflect::DynamicMessage;
use serde_json::{Map, Value};
use tonic::{Code, Response, Status};

use super::{
    exit::{Exit, Failure, Result},
    input, output,
};

/// Help text of `--batch`.
pub const HELP: &str = "Items as JSON lines (`-` for stdin): the request in proto JSON, bytes as base64, \
                        and a \"reference\" of yours; answers are JSON lines too";

/// Items per request: proto/claviger/v1/crypto.proto.
const MAX_ITEMS: usize = 100;
/// JSON bytes per request. Base64 is larger than what it encodes, so the request stays under 8 MiB.
const MAX_BYTES: usize = 8 << 20;

/// Sends the items of `file` through `call`, in as many requests as it takes, and prints the results.
pub async fn run<Request, Answer>(
    file: &Path,
    defaults: Map<String, Value>,
    mut call: impl AsyncFnMut(Request) -> std::result::Result<Response<Answer>, Status>,
) -> Result<Exit>
where
    Request: prost::Message + prost::Name + Default,
    Answer: prost::Message + prost::Name,
{
    let text = String::from_utf8(input::read(Some(file))?)
        .map_err(|_| Failure::usage(format!("{}: not UTF-8", file.display())))?;
    let mut exit = Exit::Ok;
    for items in requests(&text, &defaults)? {
        let answer = call(request(items)?).await?.into_inner();
        let json = output::json_value(&answer)?;
        for result in json["results"].as_array().into_iter().flatten() {
            output::print(&result.to_string())?;
            if exit == Exit::Ok {
                exit = verdict(result);
            }
        }
    }
    Ok(exit)
}

/// What the command line gives to every item.
pub fn defaults(key: Option<&str>, tenant: &str, aad: Value) -> Map<String, Value> {
    let mut map = Map::new();
    if let Some(key) = key {
        map.insert("key".into(), key.into());
    }
    if !tenant.is_empty() {
        map.insert("tenant".into(), tenant.into());
    }
    if aad.as_object().is_some_and(|aad| !aad.is_empty()) {
        map.insert("aad".into(), aad);
    }
    map
}

/// The items, cut into requests that fit.
fn requests(text: &str, defaults: &Map<String, Value>) -> Result<Vec<Vec<Value>>> {
    let mut requests = Vec::new();
    let (mut items, mut bytes) = (Vec::new(), 0);
    for (number, line) in (1..)
        .zip(text.lines())
        .filter(|(_, line)| !line.trim().is_empty())
    {
        if items.len() == MAX_ITEMS || (bytes + line.len() > MAX_BYTES && !items.is_empty()) {
            requests.push(std::mem::take(&mut items));
            bytes = 0;
        }
        bytes += line.len();
        items.push(item(number, line, defaults)?);
    }
    if !items.is_empty() {
        requests.push(items);
    }
    Ok(requests)
}

fn item(number: usize, line: &str, defaults: &Map<String, Value>) -> Result<Value> {
    // serde's message may quote the line, and the line may be a plaintext.
    let bad = || Failure::usage(format!("line {number} of the batch is not a JSON object"));
    let mut given: Map<String, Value> = serde_json::from_str(line).map_err(|_| bad())?;
    let reference = match given.shift_remove("reference") {
        Some(reference) => reference,
        None => number.to_string().into(),
    };
    let mut request = defaults.clone();
    request.extend(given);
    Ok(serde_json::json!({ "reference": reference, "request": request }))
}

fn request<Request>(items: Vec<Value>) -> Result<Request>
where
    Request: prost::Message + prost::Name + Default,
{
    let json = serde_json::json!({ "items": items });
    let dynamic = DynamicMessage::deserialize(output::descriptor::<Request>()?, json)
        .map_err(|e| Failure::usage(format!("the batch is not what the RPC takes: {e}")))?;
    dynamic.transcode_to().map_err(Failure::other)
}

/// The exit code that one result stands for.
fn verdict(result: &Value) -> Exit {
    if let Some(error) = result.get("error").filter(|error| !error.is_null()) {
        let code = error["code"]
            .as_i64()
            .and_then(|code| i32::try_from(code).ok());
        return Exit::of(code.map_or(Code::Unknown, Code::from_i32));
    }
    match result["response"].get("valid") {
        Some(Value::Bool(false)) => Exit::No,
        Some(_) | None => Exit::Ok,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::proto;

    #[test]
    fn lines_become_items() {
        let lines =
            "{\"reference\":\"a\",\"message\":\"aGk=\"}\n\n{\"key\":\"k2\",\"digest\":\"AAA=\"}\n";
        let defaults = defaults(Some("k1"), "acme", Value::Null);
        let mut requests = requests(lines, &defaults).unwrap();
        let request: proto::BatchSignRequest = request(requests.remove(0)).unwrap();
        let first = request.items[0].request.as_ref().unwrap();
        assert_eq!(
            (request.items[0].reference.as_str(), first.key.as_str()),
            ("a", "k1")
        );
        assert_eq!(first.tenant, "acme");
        let second = request.items[1].request.as_ref().unwrap();
        assert_eq!(
            (request.items[1].reference.as_str(), second.key.as_str()),
            ("3", "k2")
        );
    }

    #[test]
    fn a_batch_is_cut_at_a_hundred_items() {
        let lines = "{}\n".repeat(250);
        let requests = requests(&lines, &Map::new()).unwrap();
        assert_eq!(
            requests.iter().map(Vec::len).collect::<Vec<_>>(),
            [100, 100, 50]
        );
    }

    #[test]
    fn unknown_fields_are_refused() {
        let mut requests = requests("{\"mesage\":\"aGk=\"}", &Map::new()).unwrap();
        assert!(request::<proto::BatchSignRequest>(requests.remove(0)).is_err());
    }

    #[test]
    fn results_decide_the_exit_code() {
        let result = |json: &str| verdict(&serde_json::from_str(json).unwrap());
        assert_eq!(result(r#"{"response":{"valid":true}}"#), Exit::Ok);
        assert_eq!(result(r#"{"response":{"valid":false}}"#), Exit::No);
        assert_eq!(result(r#"{"error":{"code":5}}"#), Exit::NotFound);
    }
}
