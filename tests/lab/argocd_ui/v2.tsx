// What Argo CD's pages import from argo-ui/v2, which no registry has in a version that fits. Written for the lab.
import * as moment from 'moment';
import * as React from 'react';

import {Tooltip} from '../src/components/tooltip/tooltip';

export {Tooltip};

export enum Key {
    ENTER = 13,
    ESCAPE = 27,
    LEFT = 37,
    UP = 38,
    RIGHT = 39,
    DOWN = 40,
    SLASH = 191
}

export enum NumKey {
    ZERO = 48,
    ONE,
    TWO,
    THREE,
    FOUR,
    FIVE,
    SIX,
    SEVEN,
    EIGHT,
    NINE
}

export enum NumPadKey {
    ZERO = 96,
    ONE,
    TWO,
    THREE,
    FOUR,
    FIVE,
    SIX,
    SEVEN,
    EIGHT,
    NINE
}

export const NumKeyToNumber = (key: number) => key - (key >= NumPadKey.ZERO ? NumPadKey.ZERO : NumKey.ZERO);

interface Binding {
    keys: number | number[];
    action: (key: number) => boolean;
}

/** Calls `action` for each press of one of the keys; true means that the press is used up. Who types in a field means the field. */
function useKeybinding(binding: Binding) {
    const latest = React.useRef(binding);
    latest.current = binding;
    React.useEffect(() => {
        const listen = (event: KeyboardEvent) => {
            const key = event.keyCode;
            const typing = ['INPUT', 'SELECT', 'TEXTAREA'].includes((event.target as HTMLElement).tagName);
            if (event.altKey || event.ctrlKey || event.metaKey || (typing && key !== Key.ESCAPE)) {
                return;
            }
            if ([].concat(latest.current.keys).includes(key) && latest.current.action(key)) {
                event.preventDefault();
            }
        };
        document.addEventListener('keydown', listen);
        return () => document.removeEventListener('keydown', listen);
    }, []);
}

export const KeybindingContext = React.createContext({useKeybinding});
export const KeybindingProvider = (props: {children?: React.ReactNode}) => <React.Fragment>{props.children}</React.Fragment>;

/** A position among `count` things, -1 for none: the position, how to move it, how to forget it. */
export function useNav(count: number): [number, (by: number) => boolean, () => void] {
    const [position, setPosition] = React.useState(-1);
    const move = (by: number) => {
        const next = position + by;
        if (next < 0 || next >= count) {
            return false;
        }
        setPosition(next);
        return true;
    };
    return [position, move, () => setPosition(-1)];
}

export function useData<T>(load: () => Promise<T>, init?: T, callback?: (data: T) => void, dependencies?: any[]): [T, boolean, {state: boolean; retry: () => void}] {
    const [data, setData] = React.useState(init);
    const [loading, setLoading] = React.useState(true);
    const [failed, setFailed] = React.useState(false);
    const [attempt, setAttempt] = React.useState(0);
    React.useEffect(() => {
        let wanted = true;
        setFailed(false);
        load().then(
            result => {
                if (wanted) {
                    setData(result);
                    setLoading(false);
                    callback?.(result);
                }
            },
            () => {
                if (wanted) {
                    setLoading(false);
                    setFailed(true);
                }
            }
        );
        return () => {
            wanted = false;
        };
    }, [attempt, ...(dependencies || [])]);
    return [data, loading, {state: failed, retry: () => setAttempt(attempt + 1)}];
}

export const ago = (time: Date) => moment(time).fromNow();

export const Checkbox = (props: {value?: boolean; onChange?: (value: boolean) => void; style?: React.CSSProperties}) => {
    const value = !!props.value;
    const told = React.useRef(value);
    const tell = (next: boolean) => {
        told.current = next;
        props.onChange?.(next);
    };
    // A row with a box changes the value when people press its label; only the box tells what that means.
    React.useEffect(() => {
        if (told.current !== value) {
            tell(value);
        }
    }, [value]);
    return (
        <i
            role='checkbox'
            aria-checked={value}
            className={value ? 'fa fa-check-square' : 'far fa-square'}
            style={{cursor: 'pointer', color: value ? '#00a2b3' : undefined, ...props.style}}
            onClick={() => tell(!value)}
        />
    );
};

export const ActionButton = (props: {
    action?: (event: React.MouseEvent) => void;
    disabled?: boolean;
    icon?: string;
    label?: string;
    tooltip?: React.ReactNode;
}) => {
    const button = (
        <button className='argo-button argo-button--base argo-button--sm' disabled={props.disabled} onClick={event => props.action?.(event)}>
            {props.icon && <i className={props.icon} />} {props.label}
        </button>
    );
    return props.tooltip ? <Tooltip content={props.tooltip}>{button}</Tooltip> : button;
};

export const Autocomplete = (props: {
    items: string[];
    abbreviations?: Map<string, string>;
    value?: string;
    placeholder?: string;
    onChange?: (event: React.ChangeEvent<HTMLInputElement>) => void;
    onItemClick?: (item: string) => void;
    style?: React.CSSProperties;
    inputStyle?: React.CSSProperties;
}) => {
    const [open, setOpen] = React.useState(false);
    const [position, move, reset] = useNav(props.items.length);
    const typed = (props.value || '').toLowerCase();
    const fitting = props.items.filter(item => [item, props.abbreviations?.get(item) || ''].some(word => word.toLowerCase().includes(typed)));
    const choose = (item: string) => {
        props.onItemClick?.(item);
        setOpen(false);
        reset();
    };
    const press = (event: React.KeyboardEvent) => {
        if (event.keyCode === Key.DOWN || event.keyCode === Key.UP) {
            move(event.keyCode === Key.DOWN ? 1 : -1);
            event.preventDefault();
        } else if (event.keyCode === Key.ENTER) {
            choose(fitting[position] || props.value);
        }
    };
    return (
        <div style={{position: 'relative', ...props.style}}>
            <input
                className='argo-field'
                value={props.value}
                placeholder={props.placeholder}
                style={props.inputStyle}
                onChange={props.onChange}
                onFocus={() => setOpen(true)}
                onBlur={() => setOpen(false)}
                onKeyDown={press}
            />
            {open && fitting.length > 0 && (
                <div className='select__options' style={{position: 'absolute', zIndex: 1, width: '100%', maxHeight: '15em', overflowY: 'auto'}}>
                    {fitting.map((item, number) => (
                        <div
                            key={item}
                            className={`select__option ${number === position ? 'selected' : ''}`}
                            // The press comes before the field loses the focus, the click after it.
                            onMouseDown={() => choose(item)}>
                            {item}
                        </div>
                    ))}
                </div>
            )}
        </div>
    );
};
