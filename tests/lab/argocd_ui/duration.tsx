// Argo CD's pages say durations in seconds; the component library of the registry takes another property.
import * as React from 'react';

export const Duration = (props: {durationS: number}) => {
    const seconds = Math.max(0, Math.round(props.durationS));
    const pad = (value: number) => String(value).padStart(2, '0');
    const [days, hours, minutes] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
    const clock = days || hours ? `${pad(hours)}:${pad(minutes)} hours` : `${pad(minutes)}:${pad(seconds % 60)} min`;
    return <span>{days ? `${days} days ${clock}` : clock}</span>;
};
