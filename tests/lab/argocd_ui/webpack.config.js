// Argo CD's own configuration, made faster: esbuild makes the files small, the packages are not rewritten for old browsers,
// and Codecov hears nothing of it.
'use strict';

const {EsbuildPlugin} = require('esbuild-loader');

const config = require('./src/app/webpack.config.js');

config.optimization = {minimizer: [new EsbuildPlugin({target: 'es2020'})]};
config.module.rules = config.module.rules.filter(rule => rule.enforce !== 'pre');
// Codecov's is the one without a class.
config.plugins = config.plugins.filter(plugin => plugin.constructor !== Object);

module.exports = config;
