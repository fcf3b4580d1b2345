//! A trace as people read it.

use opentelemetry_proto::tonic::trace::v1::Span;

use super::collector::attribute;

/// One line a span, children below their parent in the order of their begin: name, milliseconds, what it says.
pub fn lines(spans: &[Span]) -> Vec<String> {
    let ids: Vec<_> = spans.iter().map(|span| &span.span_id).collect();
    let mut roots = spans
        .iter()
        .filter(|span| !ids.contains(&&span.parent_span_id));
    let root = roots.next().expect("a root");
    assert!(roots.next().is_none(), "a trace has one root: {spans:#?}");
    let mut lines = vec![line("", root)];
    below(spans, root, "", &mut lines);
    assert_eq!(lines.len(), spans.len(), "every span hangs below the root");
    lines
}

/// The same without what changes from day to day.
pub fn shape(lines: &[String]) -> Vec<String> {
    let names = lines.iter().map(|line| {
        let (name, _said) = line.split_once(" ms").unwrap_or((line, ""));
        let (name, _time) = name.rsplit_once(' ').unwrap_or((name, ""));
        name.trim_end().to_owned()
    });
    names.collect()
}

fn below(spans: &[Span], parent: &Span, indent: &str, lines: &mut Vec<String>) {
    let mut children: Vec<_> = spans
        .iter()
        .filter(|span| span.parent_span_id == parent.span_id)
        .collect();
    children.sort_by_key(|span| span.start_time_unix_nano);
    let last = children.len().saturating_sub(1);
    for (at, child) in children.into_iter().enumerate() {
        let (branch, further) = match at == last {
            true => ("└─ ", "   "),
            false => ("├─ ", "│  "),
        };
        lines.push(line(&format!("{indent}{branch}"), child));
        below(spans, child, &format!("{indent}{further}"), lines);
    }
}

fn line(indent: &str, span: &Span) -> String {
    let nanos = span.end_time_unix_nano - span.start_time_unix_nano;
    let name = format!("{indent}{}", span.name);
    let said: Vec<_> = span
        .attributes
        .iter()
        .filter_map(|one| Some(format!("{}={}", one.key, attribute(span, &one.key)?)))
        .collect();
    let line = format!(
        "{name:<34}  {:>8.3} ms  {}",
        nanos as f64 / 1e6,
        said.join(" ")
    );
    line.trim_end().to_owned()
}
