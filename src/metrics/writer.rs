//! Families of samples, as Prometheus' library takes them.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::stats::Histogram;

/// Labels of one sample.
pub(super) type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Returns the label that every sample of a section has.
pub(super) fn section_label(section: &str) -> Labels<'_> {
    labels(section, [])
}

/// Returns the labels of a sample of a section.
pub(super) fn labels<'a, const N: usize>(
    section: &'a str,
    more: [(&'static str, &'a str); N],
) -> Labels<'a> {
    [("section", section)].into_iter().chain(more).collect()
}

/// Adds up samples with the same labels, which no scrape may have twice: two sections can have one
/// name, and one backend can stand in a section several times.
fn merged<'a>(samples: impl IntoIterator<Item = (Labels<'a>, u64)>) -> BTreeMap<Labels<'a>, u64> {
    let mut merged = BTreeMap::new();
    for (labels, value) in samples {
        *merged.entry(labels).or_default() += value;
    }
    merged
}

/// Writes families of samples.
pub(super) struct Writer<'w, 'e>(&'w mut DescriptorEncoder<'e>);

impl<'w, 'e> Writer<'w, 'e> {
    /// Creates a writer into an encoder.
    pub(super) fn new(encoder: &'w mut DescriptorEncoder<'e>) -> Self {
        Self(encoder)
    }

    /// Writes a counter; its name gets the suffix `_total`.
    pub(super) fn counter<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'a>, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, count) in merged(samples) {
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// Writes a gauge.
    pub(super) fn gauge<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'a>, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in merged(samples) {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// Writes a value of the whole process, with a fraction.
    pub(super) fn value(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        value: f64,
    ) -> fmt::Result {
        let encoder = self.0.encode_descriptor(name, help, None, kind)?;
        match kind {
            MetricType::Counter => ConstCounter::new(value).encode(encoder),
            _ => ConstGauge::new(value).encode(encoder),
        }
    }

    /// Writes a histogram of times in seconds.
    pub(super) fn histogram<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (&'a str, &'a Histogram)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        let mut merged = BTreeMap::new();
        for (section, histogram) in samples {
            let read = histogram.read();
            merged
                .entry(section)
                .and_modify(|(sum, count, buckets): &mut (f64, u64, Vec<(f64, u64)>)| {
                    *sum += read.0;
                    *count += read.1;
                    for (bucket, more) in buckets.iter_mut().zip(&read.2) {
                        bucket.1 += more.1;
                    }
                })
                .or_insert(read);
        }
        for (section, (sum, count, buckets)) in merged {
            let labels = section_label(section);
            let mut encoder = family.encode_family(&labels)?;
            encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    /// Writes a version.
    pub(super) fn info(&mut self, name: &str, help: &str, version: &str) -> fmt::Result {
        let name = format!("{name}_info");
        let mut family = self.0.encode_descriptor(&name, help, None, MetricType::Gauge)?;
        let labels: Labels<'_> = vec![("version", version)];
        ConstGauge::new(1_i64).encode(family.encode_family(&labels)?)
    }
}
