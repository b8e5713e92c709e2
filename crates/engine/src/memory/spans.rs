//! Sets of bytes as sorted, disjoint, non-touching ranges.

use std::ops::Range;

/// Appends `span`, which must not begin before the last one does, and joins it with that one where they touch.
pub(super) fn push(spans: &mut Vec<Range<u64>>, span: Range<u64>) {
    match spans.last_mut() {
        Some(last) if last.end >= span.start => last.end = last.end.max(span.end),
        _ => spans.push(span),
    }
}

/// The bytes of `spans`, which are in any order.
pub(super) fn union(mut spans: Vec<Range<u64>>) -> Vec<Range<u64>> {
    spans.sort_by_key(|span| span.start);
    let mut joined = Vec::new();
    spans.into_iter().for_each(|span| push(&mut joined, span));
    joined
}

/// The same counted from `start`, which is not behind any of them.
pub(super) fn from(start: u64, spans: Vec<Range<u64>>) -> Vec<Range<u64>> {
    spans.into_iter().map(|span| span.start - start..span.end - start).collect()
}

/// How many bytes there are.
pub(super) fn bytes(spans: &[Range<u64>]) -> u64 {
    spans.iter().map(|span| span.end - span.start).sum()
}

/// The bytes of `spans` that are not in `taken`.
pub(super) fn subtract(spans: &[Range<u64>], taken: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut rest = Vec::new();
    let mut taken = taken.iter().peekable();
    for span in spans {
        let mut start = span.start;
        while let Some(next) = taken.next_if(|next| next.end <= span.end) {
            rest.push(start..next.start);
            start = start.max(next.end);
        }
        // A range that reaches beyond this span may take from the next one as well, so it stays in line.
        let end = taken.peek().map_or(span.end, |next| next.start.clamp(start, span.end));
        rest.push(start..end);
    }
    rest.retain(|span| !span.is_empty());
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spans(bits: &[bool]) -> Vec<Range<u64>> {
        let mut spans = Vec::new();
        for (at, _) in (0_u64..).zip(bits).filter(|(_, bit)| **bit) {
            push(&mut spans, at..at + 1);
        }
        spans
    }

    proptest! {
        #[test]
        fn difference_equals_the_naive_oracle(bits in prop::collection::vec(any::<(bool, bool)>(), 0..200)) {
            let (all, taken): (Vec<bool>, Vec<bool>) = bits.into_iter().unzip();
            let rest: Vec<bool> = all.iter().zip(&taken).map(|(all, taken)| *all && !*taken).collect();
            prop_assert_eq!(subtract(&spans(&all), &spans(&taken)), spans(&rest));
        }
    }
}
